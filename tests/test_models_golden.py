"""Outputs of both models on fixed weights and images, pinned.

A failure means that stored runs are no longer those of this code: raise the numerics version, and
write the values anew with ``python tests/test_models_golden.py``.
"""

import json
from pathlib import Path

import pytest
import torch

from vitlib.models import create_model

GOLDEN = Path(__file__).parent / "golden" / "models.json"
TINY = {"patch_size": 8, "d_model": 16, "num_heads": 2, "num_layers": 2, "ffn_hidden_channels": 24}
CASES = {
    "original, tiny": ("original", TINY),
    "original, tiny, corrected": ("original", TINY | {"attention_noise": "dropout", "head": "linear"}),
    "original, tiny autoencoder": ("original", TINY | {"classifier": False}),
    "original, default": ("original", {}),
    "original, default autoencoder": ("original", {"classifier": False}),
    "vit, tiny": ("vit", TINY),
    "vit, tiny, everything": (
        "vit",
        TINY
        | {
            "stem": "conv",
            "pos": "sincos",
            "pool": "seq",
            "layer_scale": 0.1,
            "registers": 2,
            "drop_path": 0.1,
        },
    ),
    "vit, tiny, class token": ("vit", TINY | {"pool": "cls"}),
    "vit, default": ("vit", {}),
}


def compute(name):
    """Return 24 outputs for two images in evaluation mode, the noise of the original seeded."""
    model, arguments = CASES[name]
    torch.manual_seed(0)
    network = create_model(model, **arguments).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.manual_seed(2)
    with torch.no_grad():
        return network(images).flatten()[:24].double()


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_pinned_ones(name):
    expected = torch.tensor(json.loads(GOLDEN.read_text(encoding="utf-8"))[name], dtype=torch.float64)
    assert expected.std() > 0.003
    torch.testing.assert_close(compute(name), expected, atol=1e-4, rtol=1e-3)


if __name__ == "__main__":
    values = {name: [round(value, 6) for value in compute(name).tolist()] for name in CASES}
    lines = (f"  {json.dumps(name)}: {json.dumps(outputs)}" for name, outputs in values.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
