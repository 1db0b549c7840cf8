"""From an image to tokens that know their places: the stems and positions of ``vit.py``.

Letters in shapes: B images, C image channels, S side of an image, p side of a patch, G = S/p side of
the patch grid, D width (d_model); y and x count rows and columns of the grid.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn


class PatchStem(nn.Conv2d):
    """Cut the image into p x p patches and map each linearly: (B, C, S, S) -> (B, D, G, G)."""

    def __init__(self, in_channels: int, d_model: int, patch_size: int):
        super().__init__(in_channels, d_model, kernel_size=patch_size, stride=patch_size)


class ConvStem(nn.Sequential):
    """Convolutional tokenizer of CCT (Hassani et al. 2021, arXiv:2104.05704): (B, C, S, S) -> (B, D, G, G).

    Each stage, 3x3 convolution, ReLU, 3x3 max-pooling, halves the side: one stage for p = 2, two for p = 4.
    """

    def __init__(self, in_channels: int, d_model: int, patch_size: int):
        stages = patch_size.bit_length() - 1
        widths = [in_channels, *[64] * (stages - 1), d_model]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            convolution = nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight)
            layers += [convolution, nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2, padding=1)]
        super().__init__(*layers)

    def forward(self, images: Tensor) -> Tensor:
        # channels last in memory: pooling is several times as fast on a processor, and the tokens need no copy
        return super().forward(images.contiguous(memory_format=torch.channels_last))


class HybridStem(nn.Sequential):
    """A small convolutional network that makes the tokens, the hybrid of Dosovitskiy et al. 2021, section 3.1.

    (B, C, S, S) -> (B, D, G, G). Every stage halves the side by a strided convolution, 4x4 on the image and 2x2 after
    that, so that nothing wide is computed at the larger side; then a 3x3 convolution and a second one around which a
    shortcut leads (He et al. 2016, arXiv:1512.03385). BatchNorm and ReLU after each. Widths: 64, in the last stage D.
    """

    def __init__(self, in_channels: int, d_model: int, patch_size: int):
        stages = patch_size.bit_length() - 1
        super().__init__(*chain.from_iterable(self.stages(in_channels, d_model, stages)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    @staticmethod
    def stages(in_channels: int, d_model: int, stages: int) -> Iterator[list[nn.Module]]:
        """Yield the layers of each stage; each halves the side, the first sees the image."""
        for i, (before, after) in enumerate(pairwise([in_channels, *[64] * (stages - 1), d_model])):
            halve = ConvUnit(before, after, 2, 2, 0) if i else ConvUnit(before, after, 4, 2, 1)
            yield [halve, ConvUnit(after, after), Shortcut(ConvUnit(after, after))]

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.contiguous(memory_format=torch.channels_last))  # as above


class PooledStem(HybridStem):
    """The hybrid stem for those who can wait: each stage widens at the larger side, then pools the maximum.

    A 3x3 convolution, 2x2 max-pooling, and one 3x3 convolution with a shortcut around it; before all that a convolution
    at the image's own side. The order is that of Jordan 2024 (arXiv:2404.00498, section 3.1), whose network it
    resembles. Widths: 3/32 of D at the image's side, D/4 in the first stage, D in the last, 3/4 of D between.
    """

    @staticmethod
    def stages(in_channels: int, d_model: int, stages: int) -> Iterator[list[nn.Module]]:
        """See :meth:`HybridStem.stages`."""
        widths = [3 * d_model // 32, *[d_model // 4, *[3 * d_model // 4] * stages][: stages - 1], d_model]
        for i, (before, after) in enumerate(pairwise(widths)):
            image = [] if i else [ConvUnit(in_channels, before)]
            yield [*image, ConvUnit(before, after, pool=2), Shortcut(ConvUnit(after, after))]


class WideStem(HybridStem):
    """The pooled stem closer to its model: GELU, no shortcuts, and widths that do not depend on D but in the last stage.

    A convolution that does not narrow begins by passing its input on (Jordan 2024, section 3.3), and learns what else
    to do with it. Widths: 24 at the image's side, 64 in the first stage, D in the last, 256 between.
    """

    widths = 24, 64, 256

    def __init__(self, in_channels: int, d_model: int, patch_size: int):
        super().__init__(in_channels, d_model, patch_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and in_channels < module.in_channels <= module.out_channels:
                nn.init.dirac_(module.weight.data[: module.in_channels])

    @classmethod
    def stages(cls, in_channels: int, d_model: int, stages: int) -> Iterator[list[nn.Module]]:
        """See :meth:`HybridStem.stages`."""
        widths = [*(cls.widths + cls.widths[-1:] * stages)[:stages], d_model]
        unit = partial(ConvUnit, activation=nn.GELU)
        for i, (before, after) in enumerate(pairwise(widths)):
            yield [*([] if i else [unit(in_channels, before)]), unit(before, after, pool=2), unit(after, after)]


class BroadStem(WideStem):
    """The wide stem again, of 128 channels in the first stage and 384 between: the width of Jordan 2024's airbench95."""

    widths = 24, 128, 384


class ConvUnit(nn.Sequential):
    """Convolution, max-pooling where ``pool`` is above 1, BatchNorm, ReLU: (B, C, S, S) -> (B, C', S', S')."""

    def __init__(
        self, before: int, after: int, size: int = 3, stride: int = 1, padding: int = 1, pool: int = 1,
        activation: type[nn.Module] = nn.ReLU,
    ):  # fmt: skip
        convolution = nn.Conv2d(before, after, size, stride, padding, bias=False)
        super().__init__(convolution, *[nn.MaxPool2d(pool)] * (pool > 1), nn.BatchNorm2d(after), activation())


class Shortcut(nn.Sequential):
    """What is inside, added to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class ShiftedStem(nn.Module):
    """Shifted patch tokenization of Lee et al. 2021 (arXiv:2112.13492, section 3.2): (B, C, S, S) -> (B, D, G, G).

    The image and its four copies, moved by half a patch along the diagonals, are cut into patches together.
    """

    def __init__(self, in_channels: int, d_model: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.norm = nn.LayerNorm(5 * in_channels * patch_size**2)
        self.proj = nn.Linear(5 * in_channels * patch_size**2, d_model)

    def forward(self, images: Tensor) -> Tensor:
        by, side = max(1, self.patch_size // 2), images.shape[-1]
        around = F.pad(images, (by, by, by, by))
        places = ((by, by), (0, 0), (0, 2 * by), (2 * by, 0), (2 * by, 2 * by))
        seen = torch.cat([around[:, :, y : y + side, x : x + side] for y, x in places], dim=1)
        patches = rearrange(seen, "B C (y p) (x q) -> B y x (C p q)", p=self.patch_size, q=self.patch_size)
        return rearrange(self.proj(self.norm(patches)), "B y x D -> B D y x")


STEMS: dict[str, type[nn.Module]] = {
    "patch": PatchStem, "conv": ConvStem, "hybrid": HybridStem, "pooled": PooledStem, "wide": WideStem,
    "broad": BroadStem, "shifted": ShiftedStem,
}  # fmt: skip
HALVING = {name for name, stem in STEMS.items() if issubclass(stem, ConvStem | HybridStem)}  # the side, once a stage


def sincos_table(grid: int, d_model: int) -> Tensor:
    """Return fixed 2-D positions (G*G, D): sin y, sin x, cos y and cos x, each at D/4 frequencies."""
    frequencies = 10000.0 ** (-torch.arange(d_model // 4) / (d_model // 4))
    angles = torch.outer(torch.arange(grid, dtype=torch.float32), frequencies)
    by_row = repeat(angles, "y f -> (y x) f", x=grid)
    by_column = repeat(angles, "x f -> (y x) f", y=grid)
    return torch.cat([by_row.sin(), by_column.sin(), by_row.cos(), by_column.cos()], dim=1)


class Positions(nn.Module):
    """Add to each patch token (B, G*G, D) a vector for its place, learned or sine-cosine.

    For a grid other than the one it was made for, the table is interpolated like an image.
    """

    def __init__(self, kind: str, grid: int, d_model: int):
        super().__init__()
        self.grid = grid
        self.table: Tensor
        if kind == "learned":
            self.table = nn.Parameter(nn.init.normal_(torch.empty(1, grid * grid, d_model), std=0.02))
        else:
            self.register_buffer("table", sincos_table(grid, d_model)[None], persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.resized(round(tokens.shape[1] ** 0.5))

    def resized(self, grid: int) -> Tensor:
        """Return the table for a grid of this side, (1, grid*grid, D)."""
        if grid == self.grid:
            return self.table
        image = rearrange(self.table, "one (y x) D -> one D y x", y=self.grid)
        image = F.interpolate(image, size=(grid, grid), mode="bicubic", antialias=True)
        return rearrange(image, "one D y x -> one (y x) D")
