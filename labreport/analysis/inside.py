"""Looking into a trained ViT: where its attention goes, what its layers hold, and what each part is worth.

``attention`` and ``tokens`` are the lists that ``ViT.features`` returns, one entry a block. Letters in shapes:
B images, L blocks, h heads, P prefix tokens (class token and registers), G side of the patch grid,
N = P + G*G tokens, D width (d_model).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlib.models import ViT


def rollout(attention: Sequence[Tensor]) -> Tensor:
    """Return how much of each input token reaches each output token: L x (B, h, N, N) -> (B, N, N), rows sum to 1.

    Attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928, section 3): heads are averaged, half of each
    block is its residual connection, blocks multiply.
    """
    same = torch.eye(attention[0].shape[-1], device=attention[0].device)
    joint = same
    for weights in attention:
        joint = (weights.mean(dim=1) + same) / 2 @ joint
    return joint


def attention_distance(attention: Sequence[Tensor], patch_size: int, prefix: int = 0) -> Tensor:
    """Return each head's mean distance in pixels between a patch and the patches it looks at, (L, h).

    Weighted by the attention among patches (Dosovitskiy et al. 2021, arXiv:2010.11929, section 4.5).
    """
    grid = round((attention[0].shape[-1] - prefix) ** 0.5)
    places = patch_size * torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).float()
    apart = torch.cdist(places, places)
    found = []
    for weights in attention:
        patches = weights[:, :, prefix:, prefix:]
        far = (patches * apart.to(patches)).sum(dim=-1) / patches.sum(dim=-1)
        found.append(far.mean(dim=(0, 2)))
    return torch.stack(found)


def cka(tokens: Sequence[Tensor]) -> Tensor:
    """Return how alike the layers' representations are, (L, L), 0-1: L x (B, N, D), the same images in each.

    Linear centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414, section 3), a token an example.
    """
    centred = [x.flatten(0, 1).double() - x.flatten(0, 1).double().mean(dim=0) for x in tokens]
    shared = torch.stack([torch.stack([(x.T @ y).square().sum() for y in centred]) for x in centred])
    own = shared.diagonal().sqrt()
    return shared / torch.outer(own, own)


def token_similarity(tokens: Sequence[Tensor], prefix: int = 0) -> Tensor:
    """Return each block's mean cosine between two different patches of an image, (L,), -1 to 1."""
    found = []
    for layer in tokens:
        unit = F.normalize(layer[:, prefix:], dim=-1)
        number = unit.shape[1]
        found.append(((unit.sum(dim=1).square().sum(dim=-1) - number) / (number * (number - 1))).mean())
    return torch.stack(found)


def position_similarity(table: Tensor) -> Tensor:
    """Return the cosines between the vectors of all places, (1, G*G, D) -> (G*G, G*G)."""
    unit = F.normalize(table[0], dim=-1)
    return unit @ unit.T


class Removal(NamedTuple):
    """Which images a model gets right when it is whole and when one part is missing; bool, B images."""

    whole: Tensor  # (B,)
    heads: Tensor  # (L, h, B)
    blocks: Tensor  # (L, B)


@torch.inference_mode()
def removal(model: ViT, images: Tensor, labels: Tensor) -> Removal:
    """Take out one head or one block at a time, without training again, and classify.

    A missing head adds nothing to its block (Michel et al. 2019, arXiv:1905.10650); a missing block hands on
    what it gets (Veit et al. 2016, arXiv:1605.06431).

    Args:
        model: in evaluation mode, left as it was.
        images: float (B, C, S, S), normalised as the model was trained.
        labels: int64 (B,).
    """
    inputs = [model.embed(images)]
    for block in model.blocks:
        inputs.append(block(inputs[-1]))

    def right(tokens: Tensor, first: int) -> Tensor:
        for block in model.blocks[first:]:
            tokens = block(tokens)
        return model.head(model.pool(model.norm(tokens))).argmax(dim=1) == labels

    heads, blocks = [], []
    for i, block in enumerate(model.blocks):
        attention: Any = block.attention
        for head in range(attention.num_heads):
            with attention.proj.register_forward_pre_hook(partial(_blank, head, attention.num_heads)):
                heads.append(right(inputs[i], i))
        blocks.append(right(inputs[i], i + 1))
    by_head = torch.stack(heads).unflatten(0, (len(blocks), -1))
    return Removal(right(inputs[-1], len(blocks)), by_head, torch.stack(blocks))


def _blank(head: int, heads: int, _: nn.Module, mixed: tuple[Tensor]) -> Tensor:
    """Return what goes into the output projection, (B, N, D), with one head's part set to zero."""
    parts = mixed[0].unflatten(-1, (heads, -1)).clone()
    parts[..., head, :] = 0
    return parts.flatten(-2)
