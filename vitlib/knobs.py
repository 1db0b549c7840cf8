"""The recipes of 2.3: a model with one argument changed at a time, everything else as in its baseline.

A GPU has to get through three seeds of every setting in about 40 minutes, so all train for fewer epochs than
the recipes of 2.1: the modern ones 25 (of 100), the original's 20 after 20 of pre-training (of 501 after 500).
"""

from typing import Any

from vitlib import recipes
from vitlib.recipe import Recipe

BASE = recipes.VIT.but(name="vit-25", epochs=25)

# By argument: its name for readers, and the values that a processor has time for in minutes, in hours and in days. The
# feed-forward network stays 512 wide, so that d_model changes nothing else.
KNOBS: dict[str, tuple[str, tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]] = {
    "patch_size": ("图像块大小", (8, 16), (), (2,)),
    "d_model": ("嵌入维数", (64, 128), (), (512, 1024)),
    "num_heads": ("注意力头数", (2,), (1, 8, 16), ()),
    "num_layers": ("块数", (1, 2), (4,), (8, 12)),
    "pos": ("位置嵌入", (), ("none", "sincos"), ()),
    "pool": ("池化", (), ("cls", "seq"), ()),
    "norm": ("归一化", (), ("batch", "rms"), ()),
    "scale": ("注意力的缩放", (), ("full",), ()),
}
COUPLED = "嵌入维数（FFN 随之）"  # d_model with a feed-forward network of twice its width

WORDS = {
    "none": "不加", "sincos": "正弦余弦", "learned": "可学习",
    "cls": "类别词元", "seq": "序列池化", "mean": "平均池化",
    "batch": "批归一化", "rms": "RMS 归一化", "layer": "层归一化",
    "full": "按全宽", "head": "按头宽",
}  # fmt: skip


def told(knob: str, value: Any) -> str:
    """Return how readers know a setting, for example ``图像块大小 8`` or ``归一化“批归一化”``."""
    title = KNOBS[knob][0] if knob in KNOBS else knob
    return f"{title}“{WORDS[value]}”" if value in WORDS else f"{title} {value}"


def modern(**model_args: Any) -> Recipe:
    """Return the modern baseline with other arguments, named after them."""
    return BASE.but(
        name="-".join(["vit", *(f"{key}-{value}".replace("_", "-") for key, value in model_args.items())]),
        model_args=model_args,
    )


def original(name: str, pretrain_dropout: float = 0.1, **model_args: Any) -> Recipe:
    """Return one of the original's ablations at its own recipe, only shorter: ``SHORT`` epochs after as many."""
    long = recipes.original_ablation(f"original-{SHORT}-{name}", pretrain_dropout, **model_args)
    assert long.init_from is not None
    return long.but(epochs=SHORT, init_from=long.init_from.but(epochs=SHORT))


SHORT = 20

# The original's eleven settings: two of them, width 256 and 4 heads, are one, its default; its collapse at
# patch 16 needs no shorter run. Only its patch sizes were pre-trained without dropout.
ORIGINAL = original("default")
SETTINGS: dict[str, dict[int, Recipe]] = {
    "patch_size": {4: original("patch-4", 0.0), 8: original("patch-8", 0.0, patch_size=8), 16: recipes.PATCH16_ON},
    "d_model": {256: ORIGINAL, **{n: original(f"width-{n}", d_model=n) for n in (64, 128, 512)}},
    "num_heads": {4: ORIGINAL, **{n: original(f"heads-{n}", num_heads=n) for n in (2, 8, 16)}},
}
# The same patch sizes without the defect: what the classifiers are compared on.
PATCHES = SETTINGS["patch_size"] | {
    16: original("patch-16", 0.0, patch_size=16).but(
        name=f"original-{SHORT}-patch-16-fixed", model_args={"attention_noise": "dropout"}
    )
}


def linear(recipe: Recipe) -> Recipe:
    """Return one of the original's settings with its classifier replaced by mean pooling and one linear layer."""
    return recipe.but(name=f"{recipe.name}-linear", model_args={"head": "linear"})
