"""A small residual network, which learns from few images what a ViT has to be taught: the teacher.

Letters in shapes: B images, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import EncoderModel


class Residual(nn.Module):
    """Pre-activation block, (B, C, H, W) -> (B, C', H/stride, W/stride): He et al. 2016, arXiv:1603.05027."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.stride, self.norm1, self.norm2 = stride, nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, bias=False) if before != after or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        out = self.conv2(F.relu(self.norm2(self.conv1(active))))
        # not by a strided 1x1 convolution, whose gradient, on processors with AVX2 alone and with fewer than 8 channels,
        # is written past the end of its memory (torch 2.15); the sums are the same
        return out + (x if self.shortcut is None else self.shortcut(active[..., :: self.stride, :: self.stride]))


class CNN(EncoderModel):
    """Wide residual network (Zagoruyko & Komodakis 2016, arXiv:1605.07146): float (B, C, H, W) -> logits (B, classes).

    Args:
        width: channels of the first of three groups; the next two have twice and four times as many.
        blocks: residual blocks in a group; 2 and width 64 is WRN-16-4.
        img_size: not used; any size of at least 4 will do.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, img_size: int = 32, width: int = 64, blocks: int = 2
    ):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        layers, before = [], 16
        for group in range(3):
            for i in range(blocks):
                layers.append(Residual(before, width * 2**group, 2 if group and not i else 1))
                before = width * 2**group
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(before)
        self.head = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        # the layout in which half-precision convolutions are fast; the weights keep theirs
        images = images.contiguous(memory_format=torch.channels_last)
        return self.head(F.relu(self.norm(self.layers(self.stem(images)))).mean((2, 3)))
