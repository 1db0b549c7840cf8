"""Looking into a trained ViT: where its attention goes, what its layers hold, and what each part is worth.

``attention`` and ``tokens`` are the lists that ``ViT.features`` returns, one entry a block. Letters in shapes:
B images, L blocks, h heads, P prefix tokens (class token and registers), G side of the patch grid,
N = P + G*G tokens, D width (d_model).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlib.augment import to_float
from vitlib.data.sets import LabeledImages
from vitlib.models import ViT


@torch.no_grad()
def portrait(model: ViT, test: Tensor, right: np.ndarray, held: LabeledImages, normalize: str) -> dict[str, Any]:
    """Return all that the report shows of a trained ViT, as arrays that can be kept and published without images.

    Args:
        model: in evaluation mode, left as it was.
        test: uint8 images (B, C, S, S) to look at, at least one.
        right: bool (B,), whether the model gets them right: those come first among the four that are shown.
        held: validation images, by which the worth of a part is measured.

    Returns:
        images (numbers of those shown), blocks (0-based, of the maps) and maps (images, blocks and the rollout, G*G);
        distances (L, h) and even (what even attention would have), pixels; places (G*G, G*G) and filters
        (64 at most, C, p, p) or None, with components (the share of all filters' variance in the first six, 0-1, how
        many there are, and the mean and the deviation of that share in random matrices of this size); whole (accuracy),
        heads (L, h) and parts (L,), what their removal costs, 0-1, with its standard errors heads_error and
        parts_error, on held images; cka (L, L) and tokens (L,).
    """
    seen, prefix = model.features(to_float(test, normalize)), model.num_prefix_tokens
    order = np.argsort(~np.asarray(right, bool), kind="stable")[:4]
    depth = len(model.blocks)
    blocks = sorted({0, (depth - 1) // 2, depth - 1})
    maps = [seen.attention[i][order].mean(dim=(1, 2)) for i in blocks]
    maps.append(rollout([weights[order] for weights in seen.attention]).mean(dim=1))
    patches = seen.attention[0].shape[-1] - prefix
    even = [torch.full((1, 1, patches, patches), 1 / patches)]
    table, weight = getattr(model.positions, "table", None), getattr(model.stem, "weight", None)
    lost = removal(model, to_float(held.images, normalize), held.labels)
    by_head, by_block = (lost.whole.double() - part.double() for part in (lost.heads, lost.blocks))
    out = {
        "images": order,
        "blocks": blocks,
        "maps": torch.stack(maps, dim=1)[..., prefix:],
        "distances": attention_distance(seen.attention, model.patch_size, prefix),
        "even": attention_distance(even, model.patch_size).item(),
        "places": None if table is None else position_similarity(table),
        "filters": None,
        "components": None,
        "whole": lost.whole.double().mean().item(),
        "heads": by_head.mean(dim=-1),
        "parts": by_block.mean(dim=-1),
        "heads_error": by_head.std(dim=-1) / len(held) ** 0.5,
        "parts_error": by_block.std(dim=-1) / len(held) ** 0.5,
        "held": len(held),
        "cka": cka(seen.tokens),
        "tokens": token_similarity(seen.tokens, prefix),
    }
    if weight is not None and weight.ndim == 4 and weight.shape[1] == 3:
        rows, source = weight.flatten(1), torch.Generator().manual_seed(0)
        by_chance = [first_six(torch.randn(rows.shape, generator=source)) for _ in range(20)]
        out["filters"] = weight[rows.norm(dim=1).argsort(descending=True)[:64]]
        out["components"] = [first_six(rows), min(rows.shape), np.mean(by_chance), np.std(by_chance, ddof=1)]
    return {
        name: value.double().numpy().round(4) if isinstance(value, Tensor) else value for name, value in out.items()
    }


def first_six(rows: Tensor) -> float:
    """Return the share (0-1) of the variance of rows (D, n) in their first six principal components."""
    energy = torch.linalg.svdvals(rows - rows.mean(dim=0)).square()
    return float(energy[:6].sum() / energy.sum())


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
        return model.classify(model.norm(tokens)).argmax(dim=1) == labels

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
