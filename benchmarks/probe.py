"""What a step of each recipe of the first tier costs here, as it is and compiled: a minute before an hour is spent.

``python -m benchmarks.probe [RECIPE ...] [--data course] [--images N] [--steps N]`` prints a line a recipe and mode. Where the host's time is all of the
step's, launches are the limit, not arithmetic.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.timing import wait
from vitlib.augment import EpochDraws
from vitlib.data import Dataset, load
from vitlib.device import can_compile, describe, pick
from vitlib.engine import Trainer
from vitlib.recipe import Recipe
from vitlib.recipes import recipe_named

NEVER, ALWAYS = 2**60, 0  # steps from which a run is compiled
FIRST = ["vit", "original-vanilla", "original-pretrain", "teacher", "best", "fast"]


def timed(
    recipe: Recipe, data: Dataset, device: torch.device, compile_from: int, steps: int
) -> tuple[float, float, float]:
    """Return seconds of the first step, and of one later step: until it is launched, and until it is done."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, 0, data, device, Path(folder), show=False, compile_from=compile_from)
        draws = EpochDraws(0, 0, trainer.labels, trainer.steps_per_epoch)
        trainer.model.train()

        def step(i: int) -> None:
            trainer._train_step(draws, 0, i % trainer.steps_per_epoch)

        began = time.perf_counter()
        step(0)
        wait(device)
        first = time.perf_counter() - began
        step(1)
        wait(device)
        began = time.perf_counter()
        for i in range(steps):
            step(i + 2)
        launched = time.perf_counter() - began
        wait(device)
        return first, launched / steps, (time.perf_counter() - began) / steps


def lines(names: list[str], data: Dataset, device: torch.device, steps: int) -> Iterator[str]:
    """Yield a line a recipe and mode; a teacher is left out, whose answers cost one more forward pass."""
    modes = {"eager": NEVER, **({"compiled": ALWAYS} if device.type == "cuda" and can_compile(device) else {})}
    for name in names:
        recipe = recipe_named(name)
        recipe = recipe.but(teacher=None, distill=dict.fromkeys(recipe.distill))
        for mode, compile_from in modes.items():
            first, launched, whole = timed(recipe, data, device, compile_from, steps)
            rate = min(recipe.batch_size, len(data.train)) / whole
            yield (
                f"{name:<20}{mode:<10}first {first:6.1f} s   launched {1e3 * launched:8.2f} ms   "
                f"done {1e3 * whole:8.2f} ms   {rate:>10,.0f} images/s"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=FIRST)
    parser.add_argument("--data", default="course")
    parser.add_argument("--images", type=int)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    here = pick()
    print(describe(here))
    for line in lines(given.recipes, load(given.data).subset(given.images), here, given.steps):
        print(line, flush=True)
