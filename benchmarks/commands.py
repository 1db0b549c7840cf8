"""What ``vitlib bench`` and ``vitlib speedrun`` do: measure, print, and keep the numbers as they come."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from benchmarks import bench, speedrun
from vitlib.checkpoint import write_atomic
from vitlib.data import Dataset
from vitlib.device import pick


def run_bench(options: argparse.Namespace, data: Dataset) -> dict[str, Any]:
    """Measure speed against the peers; ``--out`` holds the cells measured so far, whenever it ends."""
    keep = _keeper(options)
    given = {"full": options.full, "seconds": options.seconds, "models": options.models, "source": options.data}
    found = bench.run(data, pick(), **given, keep=keep)
    return _finish(found, bench.tell, options, keep)


def run_speedrun(options: argparse.Namespace, data: Dataset) -> dict[str, Any]:
    """Time the way to an accuracy; ``--out`` holds the targets tried so far, whenever it ends."""
    device, keep = pick(), _keeper(options)
    todo = speedrun.plan(device, options.target, options.epochs)
    return _finish(speedrun.run(data, device, options.seeds, todo, keep), speedrun.tell, options, keep)


COMMANDS: dict[str, Callable[[argparse.Namespace, Dataset], dict[str, Any]]] = {
    "bench": run_bench,
    "speedrun": run_speedrun,
}


def _keeper(options: argparse.Namespace) -> Callable[[dict[str, Any]], None]:
    def keep(found: dict[str, Any]) -> None:
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(options.out, json.dumps(found, ensure_ascii=False).encode())

    return keep


def _finish(
    found: dict[str, Any],
    tell: Callable[[dict[str, Any]], None],
    options: argparse.Namespace,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    if not options.json:
        tell(found)
    keep(found)
    return found
