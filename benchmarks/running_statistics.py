"""Does the original's vanilla run collapse because its BatchNorms' running statistics are stale?

A BatchNorm answers with running averages that begin at mean 0 and variance 1 and keep 0.9 of themselves a step. After
few steps they are not yet the activations' own. This lets the trained runs answer the test images as they are, then once
more after their statistics were taken anew from their training images, all weights as they were, and publishes both
answers as the measurement ``2.1-statistics`` of these runs. Runs without their weights (which are large and not
published) are trained again, and their records published with it:

    python -m benchmarks.running_statistics [--profile hours] [--seeds 3]     # ten minutes of a core a run
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from labreport.analysis.measured import keep
from vitlib.augment import to_float
from vitlib.data import Dataset, load
from vitlib.device import pick
from vitlib.evaluate import predict
from vitlib.paths import results_dir
from vitlib.plans import jobs
from vitlib.record import Run
from vitlib.rng import derive
from vitlib.store import Store
from vitlib.sweep import resolve


def norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorms of a model, first to last."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def take_anew(model: nn.Module, images: Tensor, normalize: str, batch_size: int = 500) -> None:
    """Replace running statistics by the averages over batches of uint8 images (N, C, H, W); the weights stay.

    Not ``torch.optim.swa_utils.update_bn``, which switches the dropout on too.
    """
    model.eval()
    for norm in norms(model):
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    for batch in images.split(batch_size):
        model(to_float(batch.to(pick()), normalize))
    model.eval()


def compare(runs: Sequence[Run], data: Dataset) -> dict[str, Any]:
    """Return the measurement: a list over runs of the images answered rightly and of each norm's median variance."""
    values: dict[str, Any] = {"as_trained": [], "anew": [], "variances": [], "variances_anew": []}
    for run in runs:
        model, normalize = run.load_model().to(pick()).eval(), run.recipe.normalize
        values["steps"] = run.epochs * (len(data.train) // run.recipe.batch_size)
        values["momentum"] = norms(model)[0].momentum
        for way, variances in (("as_trained", "variances"), ("anew", "variances_anew")):
            if way == "anew":
                take_anew(model, data.train.images, normalize)
            torch.manual_seed(derive(run.seed, "predict", "test"))  # the original is noisy here too
            answers = predict(model, data.test.images, device=pick(), normalize=normalize).argmax(1)
            values[way].append((answers == data.test.labels).numpy())
            values[variances].append([float(norm.running_var.median()) for norm in norms(model)])  # type: ignore[union-attr]
            print(
                run.name,
                run.seed,
                way,
                f"{100 * values[way][-1].mean():.1f} %",
                answers.bincount().tolist(),
                values[variances][-1],
            )
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="hours")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    whole = load("course")
    profile = resolve(given.profile, whole)
    data, store = profile.cut(whole), Store()
    recipe = next(job.recipe for job in jobs("2.1", profile) if job.recipe.name == "original-vanilla")
    runs = [store.get(recipe, seed, data, weights=True) for seed in range(given.seeds)]
    for run in runs:
        store.publish(run)
    path = results_dir() / "measured" / "2.1-statistics.json"
    keep(path, [run.key for run in runs], compare(runs, data))
    print(path)


if __name__ == "__main__":
    main()
