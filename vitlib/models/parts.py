"""Small parts of a Transformer block: the norms to choose from, layer scale and drop path.

Letters in shapes: B images, N tokens, D width (d_model).
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the tokens of all images, (B, N, D) -> (B, N, D), as the original has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": partial(nn.LayerNorm, eps=1e-6),
    "batch": TokenBatchNorm,
    "rms": partial(nn.RMSNorm, eps=1e-6),
}


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor that starts small (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, d_model: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((d_model,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """In training, drop a residual branch, image by image (Huang et al. 2016, arXiv:1603.09382)."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) < keep
        return x * (kept / keep).to(x.dtype)


class CosineHead(nn.Linear):
    """Logits that are cosines of features and class vectors, float32 in [-1, 1]: (B, D) -> (B, classes).

    For margins that mean the same whatever the lengths of the vectors (Wang et al. 2018, arXiv:1801.09414, equation 3).
    """

    def __init__(self, d_model: int, num_classes: int):
        super().__init__(d_model, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # not as a matrix product, which autocast would round before a loss scales it up
        return F.cosine_similarity(x.float().unsqueeze(-2), self.weight, dim=-1)
