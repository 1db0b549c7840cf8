"""Twenty steps of both models, every draw and every operation included, pinned.

A failure means that the same recipe and seed no longer give the same run, so published records are no longer
those of this code. Where that is meant, raise ``vitlib.recipe.NUMERICS`` and write the values anew with

    python tests/test_golden_runs.py --write

which adds what is missing and leaves values of the present version alone. Where it is not meant, it is a bug.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from toy import ORIGINAL, TINY, VIT, toy, trainer

from vitlib.recipe import NUMERICS

GOLDEN = Path(__file__).parent / "golden" / "trajectories.json"
REMEDY = (
    "The same recipe and seed no longer give the same run. If this is meant, raise vitlib.recipe.NUMERICS and "
    "run `python tests/test_golden_runs.py --write`; else find the change that did it."
)
PLAIN_LOSS, DROPS = {"label_smoothing": None}, ("dropout", "attention_dropout", "drop_path")
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
    "vit with wide stem, by Muon": VIT.but(
        **COMMON, model_args={"stem": "wide", "norm": "batch", "layer_scale": 0.1}, optimizer="muon", lr=3e-3
    ),
    "original": ORIGINAL.but(**COMMON),
    "original, corrected": ORIGINAL.but(
        **COMMON, model_args={"attention_noise": "dropout"}, loss="focal", loss_args={"mining": "hard"}
    ),
    "original autoencoder": ORIGINAL.but(**COMMON, objective="autoencode", normalize="half"),
    "masked autoencoder": VIT.but(
        **COMMON,
        model="mae",
        objective="mae",
        model_args={"decoder_width": 8, "decoder_layers": 1},
        loss_args=PLAIN_LOSS,
    ),
    "dino": VIT.but(
        **COMMON,
        model="dino",
        objective="dino",
        loss_args=PLAIN_LOSS,
        model_args={"prototypes": 16, "hidden": 16, "bottleneck": 8, "small_crops": 2, "small_side": 8},
    ),
    "dynamic vit": VIT.but(**COMMON, model="dynamic_vit", model_args={"keep_ratio": 0.5, "num_layers": 4}),
    "adaptive vit": VIT.but(**COMMON, model="a_vit", model_args={"num_layers": 3, "target_depth": 2}),
    "cnn, randaugment, focal by effective number": VIT.but(
        name="toy-cnn",
        model="cnn",
        model_args={"width": 4} | dict.fromkeys((*TINY, *DROPS)),
        epochs=2,
        loss="focal",
        loss_args=PLAIN_LOSS | {"weighting": "effective", "beta": 0.99},
        augment={"randaugment": (2, 9), "mix_until": 0.5},
    ),
    "ldam, deferred, balanced sampling, trivialaugment": VIT.but(
        **COMMON | {"augment": {"mixup": None, "cutmix": None, "trivial": True, "mix_until": None}},
        model_args={"cosine_head": True},
        loss="ldam",
        loss_args=PLAIN_LOSS | {"weighting": "balanced"},
        defer=0.5,
        sampling="balanced",
    ),
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
    # Muon rounds to bfloat16 where there is that; else processors differ by up to 6e-5, in the CNN's BatchNorms
    rough = 5e-3 if RECIPES[name].optimizer == "muon" else 5e-4
    torch.testing.assert_close(found, expected, rtol=rough, atol=1e-6, msg=lambda text: f"{REMEDY}\n{text}")


def write() -> None:
    """Write the trajectories that are missing; those of the present numerics version stay as they are."""
    before = stored() if GOLDEN.exists() else {"numerics": 0}
    kept = before["losses"] if before["numerics"] == NUMERICS else {}
    losses = {name: kept.get(name) or [round(loss, 7) for loss in compute(name)] for name in RECIPES}
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in losses.items())
    text = f'{{\n  "numerics": {NUMERICS},\n  "losses": {{\n{lines}\n  }}\n}}\n'
    GOLDEN.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
