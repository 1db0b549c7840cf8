"""Twenty steps of both models, every draw and every operation included, pinned.

A failure means that the same recipe and seed no longer give the same run, so published records are no longer
those of this code. Where that is meant, raise ``vitlib.recipe.NUMERICS`` and write the values anew with

    python tests/test_golden_runs.py --write

which refuses to replace values of the present version. Where it is not meant, it is a bug.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from toy import ORIGINAL, VIT, toy, trainer

from vitlib.recipe import NUMERICS

GOLDEN = Path(__file__).parent / "golden" / "trajectories.json"
REMEDY = (
    "The same recipe and seed no longer give the same run. If this is meant, raise vitlib.recipe.NUMERICS and "
    "run `python tests/test_golden_runs.py --write`; else find the change that did it."
)
# 2 epochs of 10 steps, on 80 images: the second epoch of a study is trained without mixing
COMMON = {"epochs": 2, "augment": {"mix_until": 0.5}}
RECIPES = {
    "vit": VIT.but(**COMMON),
    "vit with conv stem, seq pool, registers": VIT.but(
        **COMMON,
        model_args={"stem": "conv", "pool": "seq", "pos": "sincos", "registers": 2, "layer_scale": 0.1},
        loss="logit_adjusted",
        protocol="refit",
    ),
    "vit with hybrid stem, by Muon": VIT.but(**COMMON, model_args={"stem": "hybrid"}, optimizer="muon", lr=3e-3),
    "original": ORIGINAL.but(**COMMON),
    "original, corrected": ORIGINAL.but(
        **COMMON, model_args={"attention_noise": "dropout"}, loss="focal", loss_args={"mining": "hard"}
    ),
    "original autoencoder": ORIGINAL.but(**COMMON, objective="autoencode", normalize="half"),
}


def compute(name: str) -> list[float]:
    """Return the loss of each of 20 steps, and what the final weights make of the test images."""
    recipe = RECIPES[name]
    data = toy(train=89 if recipe.protocol == "study" else 80)  # a study holds 9 of them back
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        none = {"return_value": None}  # float32, also where there is bfloat16
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch("vitlib.evaluate.autocast_dtype", **none),
            mock.patch("vitlib.resize.autocast_dtype", **none),
        ):
            job = trainer(recipe, data, Path(folder), seed=2)
            step_of, losses = job._forward_loss, []

            def spy(*args):
                loss, logits = step_of(*args)
                losses.append(float(loss.detach()))
                return loss, logits

            job._forward_loss = spy
            outcome = job.run()
    finally:
        torch.set_num_threads(threads)
    assert len(losses) == 20 and outcome.failed is None
    if outcome.test_logits is None:
        return losses
    return [*losses, float(F.cross_entropy(outcome.test_logits, data.test.labels))]


def stored() -> dict:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_the_trajectories_are_of_the_present_numerics_version():
    assert stored()["numerics"] == NUMERICS, "NUMERICS was raised: `python tests/test_golden_runs.py --write`"
    assert stored()["losses"].keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_twenty_steps_are_the_pinned_ones(name):
    expected = torch.tensor(stored()["losses"][name], dtype=torch.float64)
    assert expected.std() > 1e-3  # it moves, so it can differ
    found = torch.tensor(compute(name), dtype=torch.float64)
    rough = 5e-3 if RECIPES[name].optimizer == "muon" else 1e-4  # it rounds to bfloat16 where there is that
    torch.testing.assert_close(found, expected, rtol=rough, atol=1e-6, msg=lambda text: f"{REMEDY}\n{text}")


def write() -> None:
    """Write the trajectories; refuse to replace other values of the same numerics version."""
    losses = {name: [round(loss, 7) for loss in compute(name)] for name in RECIPES}
    before = stored() if GOLDEN.exists() else {"numerics": 0}
    if before["numerics"] == NUMERICS and any(losses.get(name) != old for name, old in before["losses"].items()):
        sys.exit(f"The values differ, and NUMERICS is still {NUMERICS}: raise it first (or delete {GOLDEN}).")
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in losses.items())
    text = f'{{\n  "numerics": {NUMERICS},\n  "losses": {{\n{lines}\n  }}\n}}\n'
    GOLDEN.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
