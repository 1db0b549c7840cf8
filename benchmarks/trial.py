"""Try a recipe on a small scale and write down what came out: rows of benchmarks/RECIPE.md.

The images to learn from are a part of the 90 % that a study fits; the validation split (a tenth of the training
images) is the judge; the test set is never touched.

    python benchmarks/trial.py NAME... --expect "CONV STEM: +2" [--images 10000] [--epochs 12] [--seed 0] [--narrow]

NAME is a recipe (``vit``, ``vit-mae``), a step of the ladder (``ladder-stem``) or ``best-without-stem``. ``epochs`` is
what ``vit`` gets instead of its 100; every other recipe, its teacher and its pre-training are shortened alike, so that
equal compute stays equal. ``narrow`` is half the width, a quarter of the work. ``but`` changes fields of the recipe
after that, as :meth:`vitlib.recipe.Recipe.but` does. Runs are kept in the run store.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labreport.others import PROXY
from vitlib.data import Dataset, TestSet, TrainSet, load
from vitlib.recipe import Recipe
from vitlib.recipes import recipe_named
from vitlib.store import Store

LOG = Path(__file__).with_name("RECIPE.md")
NARROW = {"d_model": 128, "ffn_hidden_channels": 256}


def judged_by_validation(data: Dataset, images: int) -> Dataset:
    """Return a data set whose test set is the validation split."""
    fit, validation = data.split(seed=0)
    whole = Dataset.of(
        PROXY, TrainSet(fit.images, fit.labels), TestSet(validation.images, validation.labels), data.class_names,
        f"{data.provenance}；验证集充当测试集",
    )  # fmt: skip
    return whole if images >= len(fit) else whole.subset(images)


def shortened(recipe: Recipe, scale: float, narrow: bool) -> Recipe:
    """Return the recipe with its epochs, and those of what is trained before it, multiplied by ``scale``."""
    changes: dict[str, Any] = {role: shortened(start, scale, narrow) for role, start in recipe.starts().items()}
    if narrow:
        changes["model_args"] = {"width": 32} if recipe.model == "cnn" else NARROW
    epochs = max(1, round(recipe.epochs * scale))
    warmup = min(recipe.warmup_epochs, max(1.0, recipe.warmup_epochs * scale), epochs / 5)
    return recipe.but(epochs=epochs, warmup_epochs=warmup, protocol="refit", **changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--expect", default="")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--narrow", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--but", type=json.loads, default={})
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    data = judged_by_validation(load("course"), given.images)
    for name in given.names:
        recipe = shortened(recipe_named(name), given.epochs / 100, given.narrow).but(**given.but)
        run = Store().get(recipe, given.seed, data)
        error = (run.accuracy * (1 - run.accuracy) / len(data.test)) ** 0.5
        balanced = np.mean([run.correct[run.labels == label].mean() for label in range(data.num_classes)])
        changed = "".join(f", {field}={json.dumps(value)}" for field, value in given.but.items())
        cells = [
            f"{datetime.date.today()}", f"{name}{changed}", "narrow" if given.narrow else "full", len(data.train),
            recipe.epochs, given.seed, given.expect, f"{run.accuracy:.1%} ± {error:.1%}", f"{balanced:.1%}",
            f"{run.train_seconds:.0f} s",
        ]  # fmt: skip
        with open(LOG, "a", encoding="utf-8") as log:
            log.write(f"| {' | '.join(map(str, cells))} |\n")
        print(*cells, sep="\t")


if __name__ == "__main__":
    main()
