"""The named recipes: the original's, exactly, and ours.

Each docstring-like comment states the source, and what came out is in the records, never here.
"""

from typing import Any

from vitlib.errors import UserError
from vitlib.recipe import Recipe

# The original report: Adam at a constant 5e-4, batches of 512, all training images, the test accuracy
# watched every epoch. "Vanilla" feeds pixels in [0, 1] to plain cross-entropy for 500 epochs.
VANILLA = Recipe(
    name="original-vanilla",
    model="original",
    protocol="original",
    epochs=500,
    batch_size=512,
    optimizer="adam",
    lr=5e-4,
    weight_decay=0.0,
    schedule="constant",
    clip_norm=0.0,
    normalize="none",
)

ORIGINAL_AUGMENT = {"flip": True, "resized_crop": (0.8, 1.0, 0.9, 1.1)}

# Its pre-training: plain autoencoding of the augmented training images, 500 epochs, no weight decay.
PRETRAIN = VANILLA.but(name="original-pretrain", objective="autoencode", normalize="half", augment=ORIGINAL_AUGMENT)

# Its "improved" run: the four remedies together, and one epoch more than vanilla.
IMPROVED = VANILLA.but(
    name="original-improved",
    epochs=501,
    weight_decay=1e-4,
    normalize="half",
    augment=ORIGINAL_AUGMENT,
    loss_args={"weighting": "original", "mining": "original"},
    init_from=PRETRAIN,
    encoder_lr_scale=0.01,
)


def original_ablation(name: str, pretrain_dropout: float = 0.1, **model_args: Any) -> Recipe:
    """Return one of the original's ablations: the improved recipe with another model.

    Its patch-size runs pre-trained with dropout 0, its other runs with 0.1.
    """
    pretrain = PRETRAIN.but(name=f"{name}-pretrain", model_args={**model_args, "dropout": pretrain_dropout})
    return IMPROVED.but(name=name, model_args=model_args, init_from=pretrain)


PATCH8 = original_ablation("original-patch8", 0.0, patch_size=8)
PATCH16 = original_ablation("original-patch16", 0.0, patch_size=16)
# What the original's loop did at the NaN: it went on, and drew a flat line.
PATCH16_ON = PATCH16.but(name="original-patch16-continued", on_nonfinite="continue")
# The same with proper attention dropout and nothing else changed.
PATCH16_FIXED = PATCH16.but(name="original-patch16-fixed", model_args={"attention_noise": "dropout"})

# The modern ViT at the original's shape: what the same width, depth and patches reach without its defects.
VIT = Recipe(
    name="vit",
    model_args={"drop_path": 0.1},
    epochs=100,
    batch_size=128,
    lr=1e-3,
    weight_decay=0.05,
    loss_args={"label_smoothing": 0.1},
    augment={"flip": True, "crop": 4},
)

# The best we know so far: convolutional stem and sequence pooling (Hassani et al. 2021), Mixup, CutMix
# and an average of the weights.
BEST = Recipe(
    name="best",
    model_args={"stem": "conv", "pool": "seq", "drop_path": 0.1, "num_layers": 7},
    protocol="refit",
    epochs=200,
    batch_size=128,
    lr=1e-3,
    weight_decay=0.05,
    warmup_epochs=10.0,
    ema=0.999,
    loss_args={"label_smoothing": 0.1},
    augment={"flip": True, "crop": 4, "mixup": 0.8, "cutmix": 1.0, "mix_until": 0.9},
)

# What two processor cores can do while one waits: a 0.9 M convolution-stem ViT.
CPU = Recipe(
    name="cpu",
    model_args={
        "stem": "conv", "pool": "seq", "d_model": 128, "num_heads": 4, "num_layers": 6, "ffn_hidden_channels": 256,
    },
    protocol="refit",
    epochs=10,
    batch_size=128,
    lr=2e-3,
    weight_decay=0.05,
    warmup_epochs=1.0,
    augment={"flip": True, "crop": 4},
)  # fmt: skip

RECIPES = {
    recipe.name: recipe
    for recipe in (
        VANILLA, PRETRAIN, IMPROVED, PATCH8, PATCH16, PATCH16_ON, PATCH16_FIXED, VIT, BEST, CPU,
    )
}  # fmt: skip


def recipe_named(name: str) -> Recipe:
    """Return a named recipe; raises UserError with the names there are."""
    from vitlib.light.recipes import METHODS  # which builds on the recipes above

    known = RECIPES | {recipe.name: recipe for _, recipe, _ in METHODS}
    if name not in known:
        raise UserError(f"没有叫 {name} 的配方；可用的配方：{'、'.join(known)}。")
    return known[name]
