"""Tokens that count for more or for less than one: what merged, dropped and halted tokens have in common.

A token of weight w acts in attention and in pooling like w equal tokens: 3 for three merged patches, 0 for a
dropped one. Gradients reach the weights.

Letters in shapes: B images, N tokens, D width.
"""

import contextlib

import torch
from einops import einsum, rearrange
from torch import Tensor

from .vit import ViT

TINY = 1e-12  # the logarithm of a dropped token's weight, and its slope, must be finite


def key_bias(weight: Tensor | None) -> Tensor | None:
    """Return what is added to the attention logits of each key, (B, N) -> (B, 1, 1, N); None: all weigh 1."""
    return None if weight is None else rearrange((weight + TINY).log(), "B N -> B 1 1 N")


def precise(device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context without autocast, for scores that put tokens in order: in bfloat16 most of them would tie, and
    ties go to the first tokens, the top of the image."""
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else contextlib.nullcontext()


def weighted_pool(model: ViT, tokens: Tensor, weight: Tensor | None) -> Tensor:
    """Sum an image up as the model does, each patch token counting for its weight: (B, N, D) -> (B, D)."""
    if weight is None or model.pooling == "cls":
        return model.pool(tokens)
    prefix = model.num_prefix_tokens
    tokens, weight = tokens[:, prefix:], weight[:, prefix:]
    if model.importance is None:
        shares = weight / weight.sum(dim=1, keepdim=True)
    else:
        shares = (model.importance(tokens).squeeze(-1) + (weight + TINY).log()).softmax(dim=1)
    return einsum(shares, tokens, "B N, B N D -> B D")
