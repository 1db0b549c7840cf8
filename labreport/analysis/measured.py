"""What was measured on trained models, kept and published as their records are.

A latency, or the answers of a quantised model, is in no run's record, and a machine without the weights, the images or
the GPU cannot measure it again. So every measurement is written to the folder ``measured/<profile>`` of the run store,
beside the keys of the runs of the first seed, so that more seeds do not undo it; :func:`publish_report` copies those of
a profile to ``report/results/measured/``, and the profile ``published`` reads them there as long as all these runs are
still there. Runs that came later do not undo it either: of them it holds nothing.
"""

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labreport.study import Study
from vitlib import plans
from vitlib.checkpoint import write_atomic
from vitlib.data import load
from vitlib.device import describe, pick
from vitlib.errors import UserError
from vitlib.paths import results_dir, runs_dir
from vitlib.store import Store
from vitlib.sweep import resolve


def measured(
    study: Study, name: str, measure: Callable[[], dict[str, Any]], keys: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what ``measure`` returns, from the published measurements where the profile is ``published``.

    ``keys``: those of the runs that it is made on, where they are not the section's; as they do not depend on the
    profile, every profile then takes what is published of just these.

    The values are JSON-able, numpy arrays included; keys of mappings are strings. Added to them under ``machine`` and
    ``device`` is what they were measured on: the processor's :func:`vitlib.device.describe`, and that of the device
    runs would train on.

    Raises:
        UserError: a published measurement that cannot be read.
    """
    runs = sorted({group[0].key for group in study.runs.values() if group} if keys is None else keys)
    file = f"{study.section}-{name}.json"
    published = study.profile == "published" or keys is not None
    found = _read(results_dir() / "measured" / file, runs, later=keys is None) if published else None
    if found is not None:
        return found
    return keep(runs_dir() / "measured" / study.profile / file, runs, measure())


def already(file: str, runs: Sequence[str]) -> dict[str, Any] | None:
    """Return the published measurement of this file name, or None where there is none of just these runs' keys.

    Raises:
        UserError: it cannot be read.
    """
    return _read(results_dir() / "measured" / file, sorted(runs), later=False)


def keep(path: Path, runs: Sequence[str], values: dict[str, Any]) -> dict[str, Any]:
    """Write a measurement made here on the runs of these keys; return it as :func:`measured` does."""
    here = {"machine": describe(torch.device("cpu")), "device": describe(pick())}
    story = {"runs": sorted(runs), "values": values | here}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(story, ensure_ascii=False, default=_packed, allow_nan=False)
    write_atomic(path, text.encode())
    return dict(json.loads(text, object_hook=_unpacked)["values"])  # as a reader of the file will see them


def publish_report(profile: str, data: str) -> list[Path]:
    """Copy the records and measurements of the report of a profile to the published ones; return their paths.

    A measurement on the same runs that is published already stays: here the weights may be missing. To replace it,
    delete it first. One on runs that are not published, such as of a profile with other epochs, is no part of it.

    Raises UserError for a record too large to go with the project.
    """
    store, whole = Store(), load(data)
    chosen = resolve(profile, whole)
    cut = chosen.cut(whole)
    runs = [store.find(job.recipe, job.seed, plans.tailed(cut, job.factor)) for job in plans.jobs("all", chosen)]
    out = [store.publish(run) for run in runs if run]
    folder = results_dir() / "measured"
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.stem.rpartition("-")[2] for path in results_dir().glob("*.json")}
    for path in sorted((runs_dir() / "measured" / chosen.name).glob("*.json")):
        made_on = json.loads(path.read_text("utf-8"))["runs"]
        if not there.issuperset(made_on) or _read(folder / path.name, made_on, later=False) is not None:
            continue
        write_atomic(folder / path.name, path.read_bytes())
        out.append(folder / path.name)
    return out


def _read(path: Path, runs: list[str], later: bool) -> dict[str, Any] | None:
    """Return the published values, or None where there are none of these runs; with ``later`` of some of them will do."""
    if not path.exists():
        return None
    try:
        story = json.loads(path.read_text("utf-8"), object_hook=_unpacked)
        made_on = set(story["runs"])
        return dict(story["values"]) if made_on == set(runs) or (later and made_on and made_on < set(runs)) else None
    except (ValueError, LookupError, TypeError, zlib.error) as error:
        raise UserError(f"测量记录 {path} 读不出来（{error}）；请重新取得这个文件，或删去它以重新测量。") from error


def _packed(value: object) -> Any:
    """Make an array JSON-able: booleans a bit each, numbers as they are."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a measurement cannot hold {type(value).__name__}")
    if value.dtype != bool:
        return {"array": value.tolist()}
    if value.ndim != 1:
        raise TypeError(f"a measurement holds booleans in one dimension, not {value.ndim}")
    bits = zlib.compress(np.packbits(value).tobytes(), 9)
    return {"bits": base64.b85encode(bits).decode(), "length": len(value)}


def _unpacked(value: dict[str, Any]) -> Any:
    if value.keys() == {"array"}:
        return np.array(value["array"])
    if value.keys() == {"bits", "length"}:
        bits = np.frombuffer(zlib.decompress(base64.b85decode(value["bits"])), np.uint8)
        return np.unpackbits(bits, count=value["length"]).astype(bool)
    return value
