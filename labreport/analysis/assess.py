"""What lightening costs and gains: answers of variants on images, and the verdict on a loss of accuracy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from labreport.stats import FEWEST_SEEDS, Comparison
from vitlib.data import LabeledImages
from vitlib.evaluate import predict
from vitlib.light import quantize
from vitlib.light.export import CPU

LOSS, WORST = 0.003, 0.010  # the mean loss of accuracy and its upper bound that count as "no clear loss"


def correct(model: nn.Module | Callable[[Tensor], Tensor], images: LabeledImages, normalize: str) -> np.ndarray:
    """Return whether each image is classified rightly, bool (N,), in float32 on the CPU."""
    logits = predict(model, images.images, device=CPU, normalize=normalize, precision="float32")
    return (logits.argmax(1) == images.labels).numpy()


def keeps_accuracy(comparison: Comparison) -> str:
    """Judge a light model minus its base: 是 where the loss is at most ``LOSS`` and its bound at most ``WORST``."""
    if min(comparison.seeds) < FEWEST_SEEDS:
        return "证据不足"
    return "是" if -comparison.difference <= LOSS and -comparison.low <= WORST else "否"


def smaller_pictures(model: nn.Module, side: int) -> Callable[[Tensor], Tensor]:
    """Return the model on pictures shrunk to ``side``: fewer tokens, their positions interpolated."""
    return lambda images: model(F.interpolate(images, size=(side, side), mode="bilinear", antialias=True))


FORMS = ("int8 动态", "int8 静态", "int8 静态，留一处浮点", "权重 int8", "权重 int4")


def fewer_bits(
    path: Path, images: Tensor, normalize: str, most: int | None = None
) -> tuple[dict[str, Path], dict[str, float]]:
    """Write quantised versions of an ONNX file beside it: the files by FORMS, and the sensitivity of each module.

    Calibrated on uint8 ``images`` (N, C, S, S), which must not be the test set's. ``most``: look at the sensitivity
    of so many modules only.
    """
    out = {name: path.with_name(f"{path.stem}-{i}.onnx") for i, name in enumerate(FORMS)}
    quantize.dynamic(path, out[FORMS[0]])
    quantize.static(path, out[FORMS[1]], images, normalize)
    errors = quantize.int8(path, out[FORMS[2]], images, normalize, most)
    for name in FORMS[3:]:
        quantize.weight_only(path, out[name], int(name[-1]))
    return out, errors
