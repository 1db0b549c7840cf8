"""``vitlib speedrun``: from images in host memory to the evaluated model, how long to reach an accuracy?

A target counts as reached when the mean test accuracy over the seeds does: the number of epochs is fixed beforehand
(on the validation split) and the test set is read once a run, at the end. Compilation happens before the clock,
on made-up pixels, and is reported beside.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.timing import wait
from labreport.stats import summary
from vitlib.data import Dataset
from vitlib.device import describe
from vitlib.engine import Trainer
from vitlib.errors import UserError
from vitlib.recipe import Recipe
from vitlib.recipes import recipe_named

# target accuracy: recipe and epochs that should reach it; the CPU's targets first
PLAN = {
    "cpu": {0.60: ("cpu", 1), 0.70: ("cpu", 2)},
    "cuda": {0.867: ("fast", 20), 0.90: ("fast", 40)},
}


def plan(
    device: torch.device, targets: Sequence[float] | None = None, epochs: int | None = None
) -> dict[float, tuple[str, int]]:
    """Return recipe and epochs by target accuracy (0-1) for a device; raises UserError for a target it has not."""
    known = PLAN["cuda" if device.type == "cuda" else "cpu"]
    for target in targets or ():
        if target not in known:
            raise UserError(f"没有为目标 {target:g} 准备的轮数；可选：{'、'.join(map(str, known))}。")
    return {target: (known[target][0], known[target][1] if epochs is None else epochs) for target in targets or known}


def run(
    data: Dataset,
    device: torch.device,
    seeds: int,
    todo: dict[float, tuple[str, int]],
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Train every target's recipe with seeds 0, 1, ...; return times, accuracies and whether each target is reached.

    ``keep`` is given what there is after each target.
    """
    rows: list[dict[str, Any]] = []
    found = {"machine": describe(device), "data": data.provenance, "targets": rows}
    for target, (name, epochs) in todo.items():
        recipe = recipe_named(name)
        recipe = recipe.but(epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs / 5))
        if not rows and device.type == "cuda":  # a GPU loads each kernel when it is first asked for
            _timed(recipe.but(epochs=1, warmup_epochs=0.2), 0, data, device)
        runs = [_timed(recipe, seed, data, device) for seed in range(seeds)]
        accuracy, seconds = (summary([run[what] for run in runs]) for what in ("accuracy", "seconds"))
        rows.append(
            {
                "target": target, "recipe": name, "epochs": epochs, "seeds": seeds, "runs": runs,
                "accuracy": accuracy.mean, "seconds": seconds.mean, "reached": accuracy.mean >= target,
            }
        )  # fmt: skip
        keep(found)
    return found


def _timed(recipe: Recipe, seed: int, data: Dataset, device: torch.device) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        begun = time.perf_counter()
        trainer = Trainer(recipe, seed, data, device, Path(folder), compile_from=0)
        trainer.warm_up()
        wait(device)
        started = time.perf_counter()
        trainer.choose_images()  # once more: the way from host memory to the device is on the clock
        outcome = trainer.run()
        wait(device)
        ended = time.perf_counter()
    assert outcome.test_logits is not None
    hits = outcome.test_logits.argmax(1) == data.test.labels
    return {"accuracy": float(hits.double().mean()), "seconds": ended - started, "warm_up": started - begun}


def tell(found: dict[str, Any]) -> None:
    """Print a line a target."""
    for row in found["targets"]:
        each = "、".join(f"{run['seconds']:.1f} 秒 {100 * run['accuracy']:.2f} %" for run in row["runs"])
        verdict = "达到" if row["reached"] else "未达到"
        print(
            f"目标 {100 * row['target']:.1f} %：配方 {row['recipe']}，{row['epochs']} 轮，{row['seeds']} 个种子，平均"
            f" {row['seconds']:.1f} 秒，测试准确率 {100 * row['accuracy']:.2f} %，{verdict}（{each}；编译另计）"
        )
