"""Batched augmentation on the device: every image gets its own random draw.

All draws of an epoch come from one table that depends on (seed, epoch) alone, with the same
columns whether or not a switch is on: turning one switch off leaves the others' draws as they
were, a resumed run repeats them, and CPU and GPU see the same pictures.

Letters: B images of a batch, C channels, H height, W width, K classes.
"""

import functools
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitlib import policy
from vitlib.errors import UserError, nearest
from vitlib.policy import LUMA
from vitlib.resize import resized_crop
from vitlib.rng import derive, generator

COLUMNS = (
    "flip", "shift_y", "shift_x", "area", "aspect", "box_y", "box_x", "brightness", "contrast", "saturation",
    "erase", "erase_area", "erase_aspect", "erase_y", "erase_x",
    "op1", "level1", "sign1", "op2", "level2", "sign2",
)  # fmt: skip
ENDS = {  # what ends with which switch
    "mix_until": ("mixup", "cutmix"), "shrink_until": ("shrink",), "strong_until": ("trivial", "randaugment", "erase"),
}  # fmt: skip
_SPARE = 24 - len(COLUMNS)  # drawn and unused, so that a later switch changes no earlier draw


@dataclass(frozen=True, init=False)
class Augment:
    """The switches of augmentation; all are off by default.

    flip: mirror left-right with probability 1/2.
    crop: zero-pad by this many pixels, then cut a random window of the original size.
    resized_crop: (smallest area, largest area, smallest aspect, largest aspect) of a random box
        that is resized bilinearly to the full size (torchvision's RandomResizedCrop; a box that would
        leave the picture is cut to it instead of being drawn again).
    jitter: brightness, contrast and saturation are each scaled by U(1 - jitter, 1 + jitter), in this order.
    erase: probability of replacing a random box (area 2-33 %, aspect 0.3-3.3) by the mean grey
        (Zhong et al., "Random Erasing", AAAI 2020, with a constant fill).
    mixup, cutmix: Beta parameters of Zhang et al. (ICLR 2018) and Yun et al. (ICCV 2019); with both
        on, each batch takes one of the two with probability 1/2.
    mix_until: fraction of the epochs after which mixing is switched off, in whole epochs: 0.9 of fewer than 10 is all.
    Pre-training, which has no labels to mix, ignores these three, and ``shrink`` as well.
    shrink: side in pixels to which batches are scaled down, after all else, for the first ``shrink_until`` of the
        epochs, where small images cost less (progressive resizing: Tan & Le 2021, arXiv:2104.00298, section 4).
    trivial: TrivialAugment, or randaugment: (operations, 1 or 2; level, 0 to 30), before jitter (:mod:`vitlib.policy`).
    strong_until: fraction of the epochs after which these two and ``erase`` are off, so that training ends on pictures
        like those it will be asked about (He et al. 2019, arXiv:1909.09148).
    """

    flip: bool = False
    crop: int = 0
    resized_crop: tuple[float, float, float, float] | None = None
    jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_until: float = 1.0
    shrink: int = 0
    shrink_until: float = 0.5
    trivial: bool = False
    randaugment: tuple[int, int] | None = None
    strong_until: float = 1.0

    def __init__(self, **switches: Any) -> None:
        known: dict[str, Any] = {item.name: item.default for item in fields(self)}
        for name in switches:
            if name not in known:
                raise UserError(f"没有叫 {name} 的数据增强{nearest(name, known)}可用的开关：{'、'.join(known)}。")
        for name, default in known.items():
            value = switches.get(name, default)
            if value is not None:
                kept = tuple(map(float, value)) if default is None else type(default)(value)
                if default is not None and kept != value:  # "False" is no False, 2.7 no number of pixels
                    raise TypeError(f"{name}={value!r}")
                value = kept
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        box, levels = self.resized_crop or (1.0, 1.0, 1.0, 1.0), {(x,) for x in range(31)}
        known = self.randaugment is None or (self.randaugment[0] in (1, 2) and self.randaugment[1:] in levels)
        rules = {
            "resized_crop": (
                len(box) == 4 and 0 < box[0] <= box[1] <= 1 and 0 < box[2] <= box[3],
                "应是（最小面积，最大面积，最小宽高比，最大宽高比），面积在 (0, 1] 内",
            ),
            "erase": (0 <= self.erase <= 1, "是概率，应在 [0, 1] 内"),
            "randaugment": (
                known and not (self.randaugment and self.trivial),
                "应是（操作个数 1 或 2，强度 0 到 30 的整数），且不与 trivial 同用",
            ),
        }
        rules |= {name: (getattr(self, name) >= 0, "不能为负") for name in ("crop", "mixup", "cutmix", "shrink")}
        rules |= {name: (0 <= getattr(self, name) <= 1, "应在 [0, 1] 内") for name in ("jitter", *ENDS)}
        for name, (good, rule) in rules.items():
            if not good:
                raise UserError(f"数据增强 {name}={getattr(self, name)!r} 不可用：{rule}。")

    @functools.cache  # noqa: B019 (asked twice a step; there are as many answers as epochs)
    def at(self, epoch: int, epochs: int) -> "Augment":
        """Return the switches of one epoch, 0-based, of so many: without those whose time is over."""
        ended = {name for end, names in ENDS.items() if epoch >= getattr(self, end) * epochs for name in names}
        return Augment(**{name: value for name, value in self.switches().items() if name not in ended})

    def switches(self) -> dict[str, Any]:
        """Return the switches that differ from their default, JSON-able."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            item.name: list(given[item.name]) if item.default is None else given[item.name]
            for item in fields(self)
            if given[item.name] != item.default
        }


class EpochDraws:
    """The random numbers of one epoch: the images in order, a row for each and a mixing plan per step."""

    def __init__(self, seed: int, epoch: int, labels: Tensor, steps: int, sampling: str = "all") -> None:
        """Draw for images of these labels, int64 (N,), on their device; sampling as in a recipe."""
        self.epoch, self._seed = epoch, seed
        source, images = generator(seed, "epoch", epoch), len(labels)
        order = torch.randperm(images, generator=source)
        table = torch.rand(images, len(COLUMNS) + _SPARE, generator=source)
        if sampling == "all":
            table = table[order]
        else:
            counts = torch.bincount(labels.cpu()).double()
            chance = counts.pow(-1.0 if sampling == "balanced" else -0.5)[labels.cpu()]
            order = torch.multinomial(chance, images, replacement=True, generator=source)
        self.order, self.table = order.to(labels.device), table.to(labels.device)
        self._tables = {0: self.table}
        # RandomState and not default_rng: numpy promises that its stream never changes
        self._mix_seeds = np.random.RandomState(derive(seed, "mix", epoch) % 2**32).randint(2**31, size=steps)

    def rows(self, places: slice, view: int = 0) -> dict[str, Tensor]:
        """Return the uniform draws in [0, 1) of the images at these places of ``order``, one (B,) tensor a column.

        Another ``view`` of the same images has draws of its own.
        """
        if view not in self._tables:
            source = generator(self._seed, "epoch", self.epoch, "view", view)
            self._tables[view] = torch.rand(self.table.shape, generator=source).to(self.order.device)
        rows = self._tables[view][places]
        return {name: rows[:, i] for i, name in enumerate(COLUMNS)}

    def mix(self, step: int) -> np.random.RandomState:
        """Return the generator that decides how the batch of this step (0-based in the epoch) is mixed."""
        return np.random.RandomState(self._mix_seeds[step])


def to_float(images: Tensor, normalize: str) -> Tensor:
    """Turn 0-255, (B, C, H, W), into float32 in [-1, 1] (``half``: mean and deviation 0.5) or [0, 1] (``none``).

    ``images`` is uint8; float32 is changed in place.
    """
    pixels = images.float()
    return pixels.mul_(2 / 255).sub_(1) if normalize == "half" else pixels.mul_(1 / 255)


def augment(
    images: Tensor, draws: dict[str, Tensor], switches: Augment, normalize: str, side: int | None = None
) -> Tensor:
    """Augment a batch.

    images: uint8 (B, C, H, W); draws: :meth:`EpochDraws.rows` of the same images; side: of the resized crop, where
    it is not to have the images' own.
    Returns float32 (B, C, H, W) in the range of :func:`to_float`.
    """
    if switches.crop or (switches.flip and not switches.resized_crop):
        images = shift_and_flip(images, draws, switches.crop, switches.flip)
    if switches.resized_crop:
        flip = switches.flip and not switches.crop  # a crop has flipped already
        images = resized_crop(images, draws, switches.resized_crop, flip, side)
    if not (switches.trivial or switches.randaugment or switches.jitter or switches.erase):
        return to_float(images, normalize)
    pixels = to_float(images, "none")
    if switches.trivial:
        pixels = policy.trivial(pixels, draws)
    if switches.randaugment:
        pixels = policy.random(pixels, draws, *map(int, switches.randaugment))
    if switches.jitter:
        pixels = jitter(pixels, draws, switches.jitter)
    if switches.erase:
        pixels = erase(pixels, draws, switches.erase)
    return pixels.mul_(2).sub_(1) if normalize == "half" else pixels


def shift_and_flip(images: Tensor, draws: dict[str, Tensor], pad: int, flip: bool) -> Tensor:
    """Zero-pad, cut a window at a random whole-pixel offset and mirror half of the images; dtype is kept."""
    height, width = images.shape[-2:]
    down, right = ((draws[name] * (2 * pad + 1)).long() for name in ("shift_y", "shift_x"))
    rows = torch.arange(height, device=images.device)
    cols = torch.arange(width, device=images.device).expand(len(images), -1)
    if flip:
        cols = torch.where((draws["flip"] < 0.5)[:, None], width - 1 - cols, cols)
    rows, cols = down[:, None] + rows, right[:, None] + cols
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    padded = F.pad(images, (pad, pad, pad, pad))
    return padded[batch, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2).contiguous()


def jitter(pixels: Tensor, draws: dict[str, Tensor], strength: float) -> Tensor:
    """Scale brightness, contrast and saturation of float pixels in [0, 1], clamped after each."""
    brightness, contrast, saturation = (
        (1 + strength * (2 * draws[name] - 1))[:, None, None, None] for name in ("brightness", "contrast", "saturation")
    )
    luma = pixels.new_tensor(LUMA)[:, None, None]
    pixels = (pixels * brightness).clamp_(0, 1)
    mean = (pixels * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = torch.lerp(mean.expand_as(pixels), pixels, contrast.expand_as(pixels)).clamp_(0, 1)
    grey = (pixels * luma).sum(1, keepdim=True)
    return torch.lerp(grey.expand_as(pixels), pixels, saturation.expand_as(pixels)).clamp_(0, 1)


def erase(pixels: Tensor, draws: dict[str, Tensor], probability: float) -> Tensor:
    """Replace one random box by mean grey, in a ``probability`` part of the images (pixels in [0, 1])."""
    height, width = pixels.shape[-2:]
    area = (0.02 + 0.31 * draws["erase_area"]) * height * width
    aspect = torch.exp(np.log(0.3) * (1 - 2 * draws["erase_aspect"]))
    box_h = torch.sqrt(area * aspect).round().clamp(1, height)
    box_w = torch.sqrt(area / aspect).round().clamp(1, width)
    top = (draws["erase_y"] * (height - box_h + 1)).floor()
    left = (draws["erase_x"] * (width - box_w + 1)).floor()
    rows = torch.arange(height, device=pixels.device)
    cols = torch.arange(width, device=pixels.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + box_h)[:, None])
    in_cols = (cols >= left[:, None]) & (cols < (left + box_w)[:, None])
    chosen = (draws["erase"] < probability)[:, None, None]
    return pixels.masked_fill((in_rows[:, :, None] & in_cols[:, None, :] & chosen)[:, None], 0.5)


def mix(
    pixels: Tensor, labels: Tensor, num_classes: int, switches: Augment, rng: np.random.RandomState
) -> tuple[Tensor, Tensor]:
    """Mix each image with the batch in reverse order, by Mixup or CutMix.

    pixels: float (B, C, H, W); labels: int64 (B,). Returns mixed pixels and soft labels float32 (B, K).
    """
    targets = F.one_hot(labels, num_classes).float()
    use_cutmix = switches.cutmix > 0 and (switches.mixup == 0 or rng.random_sample() < 0.5)
    if not use_cutmix:
        share = rng.beta(switches.mixup, switches.mixup)
        return torch.lerp(pixels.flip(0), pixels, share), torch.lerp(targets.flip(0), targets, share)
    height, width = pixels.shape[-2:]
    share = rng.beta(switches.cutmix, switches.cutmix)
    cut = np.sqrt(1 - share)
    centre_y, centre_x = rng.randint(height), rng.randint(width)
    top, bottom = (int(np.clip(centre_y + s * height * cut / 2, 0, height)) for s in (-1, 1))
    left, right = (int(np.clip(centre_x + s * width * cut / 2, 0, width)) for s in (-1, 1))
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = pixels.flip(0)[:, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, torch.lerp(targets.flip(0), targets, kept)
