"""Ten classes of generated patterns: what is left to learn from without data and without a network.

Most are dark and light bands along a field f(x, y), such as the distance from a point. Colours, position,
width and phase are random, so the mean images of the classes are nearly the same grey and a linear model
on pixels learns little: a model must see how the bands run.
"""

import numpy as np
import torch
from torch import Tensor

from vitlib.data.course import TRAIN_COUNTS
from vitlib.data.sets import Dataset, TestSet, TrainSet

# None of the patterns turns into another when it is mirrored: augmentation flips images.
CLASS_NAMES = ("横条纹", "竖条纹", "斜条纹", "方框", "菱形", "圆环", "十字", "锯齿", "棋盘格", "圆点")
TRAIN_PER_CLASS = tuple((n + 5) // 10 for n in TRAIN_COUNTS)  # the course's imbalance at a tenth
TEST_PER_CLASS = (100,) * 10
NOISE = 40  # largest grey-level change of a pixel


def load_synthetic(size: int = 32) -> Dataset:
    """Generate the data set: 3,559 training and 1,000 test images, the same on every machine."""
    return Dataset.of(
        "synthetic",
        TrainSet(*_draw(TRAIN_PER_CLASS, size, seed=0)),
        TestSet(*_draw(TEST_PER_CLASS, size, seed=1)),
        CLASS_NAMES,
        "合成数据（由程序生成的十类几何图案，类别数量之比与课程数据相同），不是 CIFAR-10",
    )


def _draw(counts: tuple[int, ...], size: int, seed: int) -> tuple[Tensor, Tensor]:
    # Integers only, and numpy's frozen RandomState: no rounding that differs between processors.
    random = np.random.RandomState(seed)
    images = np.empty((sum(counts), size, size, 3), np.uint8)
    labels = np.repeat(np.arange(10), counts)
    for image, label in zip(images, labels, strict=True):
        ink = _pattern(int(label), size, random)
        dark, light = random.randint(0, 111, 3), random.randint(145, 256, 3)
        noise = random.randint(-NOISE, NOISE + 1, (size, size, 3))
        image[:] = (np.where(ink[..., None], dark, light) + noise).clip(0, 255)
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)


def _pattern(label: int, size: int, random: np.random.RandomState) -> np.ndarray:
    """Return bool (size, size): the dark pixels."""
    period, phase = random.randint(size // 5, 3 * size // 8 + 1), random.randint(0, size)
    middle = random.randint(size // 4, size - size // 4, 2)
    y, x = np.arange(size)[:, None] - middle[0], np.arange(size)[None, :] - middle[1]

    def bands(field: np.ndarray) -> np.ndarray:
        return (field + phase) % period < period // 2

    match CLASS_NAMES[label]:
        case "横条纹":
            ink = bands(y)
        case "竖条纹":
            ink = bands(x)
        case "斜条纹":
            ink = bands(x + y * random.choice([-1, 1]))
        case "方框":
            ink = bands(np.maximum(abs(x), abs(y)))
        case "菱形":
            ink = bands(abs(x) + abs(y))
        case "圆环":
            ink = bands(np.sqrt(x * x + y * y).astype(int))
        case "十字":
            ink = np.minimum(abs(x), abs(y)) < period // 3
        case "锯齿":
            ink = bands(y + abs(x % (2 * period) - period))
        case "棋盘格":
            ink = bands(x) ^ bands(y)
        case _:
            ink = (x % period - period // 2) ** 2 + (y % period - period // 2) ** 2 < period**2 // 8
    return np.broadcast_to(ink, (size, size))
