"""The recipes of 2.3: a model with one argument changed at a time, everything else as in its baseline.

A GPU has to get through three seeds of every setting in about 40 minutes, so all train for fewer epochs than
the recipes of 2.1: the modern ones 25 (of 100), the original's 20 + 20 (of 500 + 501).
"""

from typing import Any

from vitlib import recipes
from vitlib.recipe import Recipe

BASE = recipes.VIT.but(name="vit-25", epochs=25)

# By argument: its name for readers, values that a processor has time for, values that are left to a GPU.
# The feed-forward network stays 512 wide, so that d_model changes nothing else.
KNOBS: dict[str, tuple[str, tuple[Any, ...], tuple[Any, ...]]] = {
    "patch_size": ("图像块大小", (8, 16), (2,)),
    "d_model": ("嵌入维数", (64, 128), (512, 1024)),
    "num_heads": ("注意力头数", (2,), (1, 8, 16)),
    "num_layers": ("块数", (1, 2), (4, 8, 12)),
    "pos": ("位置嵌入", (), ("none", "sincos")),
    "pool": ("池化", (), ("cls", "seq")),
    "norm": ("归一化", (), ("batch", "rms")),
    "scale": ("注意力的缩放", (), ("full",)),
}
COUPLED = "嵌入维数（FFN 随之）"  # d_model with a feed-forward network of twice its width

SHORT = 20  # epochs of the original's settings, and as many of their pre-training


def modern(**model_args: Any) -> Recipe:
    """Return the modern baseline with other arguments, named after them."""
    return BASE.but(
        name="-".join(["vit", *(f"{key}-{value}".replace("_", "-") for key, value in model_args.items())]),
        model_args=model_args,
    )


def original(name: str, pretrain_dropout: float = 0.1, **model_args: Any) -> Recipe:
    """Return one of the original's ablations at its own recipe, only shorter."""
    long = recipes.original_ablation(f"original-{name}", pretrain_dropout, **model_args)
    assert long.init_from is not None
    return long.but(epochs=SHORT, init_from=long.init_from.but(epochs=SHORT))


def corrected(recipe: Recipe, **model_args: Any) -> Recipe:
    """Return one of the original's ablations with a correction of its classifier; the pre-training is the same."""
    return recipe.but(name=f"{recipe.name}-{'-'.join(map(str, model_args.values()))}", model_args=model_args)
