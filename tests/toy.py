"""Data and recipes small enough to train in a fraction of a second."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vitlib.data import Dataset, TestSet, TrainSet
from vitlib.engine import Trainer
from vitlib.recipe import Recipe

TINY = {"patch_size": 4, "d_model": 16, "num_heads": 2, "num_layers": 1, "ffn_hidden_channels": 16}
CPU = torch.device("cpu")

# One recipe a model, with everything that draws random numbers or keeps a state of its own.
BUSY = {"flip": True, "crop": 1, "resized_crop": (0.8, 1.0, 0.9, 1.1), "jitter": 0.2, "erase": 0.3}
VIT = Recipe(
    name="toy-vit",
    model_args=TINY | {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.2},
    epochs=4,
    batch_size=8,
    lr=5e-3,
    warmup_epochs=1.0,
    ema=0.9,
    loss_args={"label_smoothing": 0.1},
    augment=BUSY | {"mixup": 0.8, "cutmix": 1.0, "mix_until": 0.75},
)
ORIGINAL = Recipe(
    name="toy-original",
    model="original",
    model_args=TINY,
    protocol="original",
    epochs=4,
    batch_size=8,
    optimizer="adam",
    lr=1e-3,
    weight_decay=1e-4,
    schedule="constant",
    clip_norm=0.0,
    ema=0.9,
    loss_args={"weighting": "original", "mining": "original"},
    augment=BUSY | {"mixup": 0.8, "mix_until": 0.5},
    encoder_lr_scale=0.5,
)
# Nothing random but the order: learns the toy data at once.
PLAIN = VIT.but(
    name="toy-plain",
    model_args={"dropout": None, "attention_dropout": None, "drop_path": None},
    ema=0.0,
    loss_args={"label_smoothing": None},
    augment=dict.fromkeys((*BUSY, "mixup", "cutmix", "mix_until")),
)


def toy(train: int = 48, test: int = 24, size: int = 16, classes: int = 3, seed: int = 0) -> Dataset:
    """Return noise in which the class is the brightest of three channels: separable, classes balanced."""
    source = torch.Generator().manual_seed(seed)

    def draw(images: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(images) % classes
        pixels = torch.randint(0, 100, (images, 3, size, size), generator=source, dtype=torch.uint8)
        pixels[torch.arange(images), labels % 3] += 100
        return pixels, labels

    names = [f"class{c}" for c in range(classes)]
    return Dataset.of("folder", TrainSet(*draw(train)), TestSet(*draw(test)), names, "玩具数据")


def trainer(recipe: Recipe, data: Dataset, folder, seed: int = 0, **options) -> Trainer:
    """Return a trainer on the CPU that shows no bar."""
    return Trainer(recipe, seed, data, CPU, folder, show=False, **options)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
