"""Unstructured pruning after training: the smallest weights become zero, their tensors stay as large as they were.

Structured pruning, which makes tensors smaller, is ``vitlib.models.transfer``.
"""

import copy
import zlib

from torch import nn
from torch.nn.utils import prune

from vitlib.errors import UserError


def magnitude(model: nn.Module, share: float) -> nn.Module:
    """Return a copy whose ``share`` (0-1) of smallest weights, over all linear layers together, is zero.

    Global magnitude pruning, Han et al. 2015 (arXiv:1506.02626), without its retraining.
    """
    if not 0 <= share < 1:
        raise UserError(f"剪去的比例 {share!r} 须在 [0, 1) 之内。")
    pruned = copy.deepcopy(model)
    layers = [(module, "weight") for module in pruned.modules() if isinstance(module, nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=share)
    for module, name in layers:
        prune.remove(module, name)
    return pruned


def packed_bytes(model: nn.Module) -> int:
    """Return the size of the weights after general compression (deflate): zeros cost next to nothing."""
    return sum(len(zlib.compress(tensor.numpy().tobytes(), 1)) for tensor in model.state_dict().values())
