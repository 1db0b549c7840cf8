"""Token merging: a ViT made faster, without or with training (Bolya et al. 2023, arXiv:2210.09461).

In every block, between attention and feed-forward network, the r most redundant tokens are merged into the
tokens that they resemble most, so that later layers see fewer of them.

Letters in shapes: B images, N tokens, P prefix tokens (class token and registers, never merged),
M = N - P patch tokens, D width (d_model), h heads, d = D/h width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .vit import Block, ViT
from .weighted import key_bias, precise, weighted_pool


def bipartite_matching(features: Tensor, r: int) -> Tensor:
    """Choose ``r`` tokens to merge; return each token's place among those left: (B, M, d) -> int64 (B, M).

    Section 3 of the paper: tokens are split alternately into two sets, each token of the first finds the
    one of the second that is most similar (cosine), and the ``r`` most similar pairs merge. A place is thus
    in 0 ... M - r - 1; tokens with the same place become one, and the order of those left is kept.
    ``r`` is at most M // 2.
    """
    with precise(features.device):
        unit = F.normalize(features.float(), dim=-1)
        similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    closeness, partner = similarity.max(dim=-1)
    merging = closeness.topk(r, dim=-1).indices
    own = torch.arange(features.shape[1], device=features.device).expand(features.shape[0], -1)
    target = own.scatter(1, 2 * merging, 2 * partner.gather(1, merging) + 1)
    place = (target == own).cumsum(dim=1) - 1
    return place.gather(1, target)


def merge(tokens: Tensor, size: Tensor, place: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Average the tokens of each place, weighted by size: (B, M, D), (B, M) -> (B, left, D), (B, left).

    The size of a token is the number of patches in it.
    """
    new_size = size.new_zeros(size.shape[0], left).scatter_add(1, place, size)
    # as a product with a matrix of weights: for 64 tokens several times faster than scattering D channels
    share = (size / new_size.gather(1, place))[:, None]
    weights = size.new_zeros(size.shape[0], left, size.shape[1]).scatter(1, place[:, None], share)
    with precise(tokens.device):  # the stream between the blocks stays in float32
        return weights.to(tokens.dtype) @ tokens, new_size


def encode(model: ViT, tokens: Tensor, r: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Run all blocks, merging r patch tokens in each (half of them where fewer than 2r are left).

    Tokens (B, N, D) -> tokens left (B, n, D), their sizes (B, n), None where nothing was merged, and the token
    in which each patch ended, int64 (B, patches). Attention is proportional (paper, equation 1): a merged
    token counts for as many patches as it holds.
    """
    prefix = model.num_prefix_tokens
    size: Tensor | None = None
    patches = torch.arange(tokens.shape[1] - prefix, device=tokens.device)
    groups = patches.expand(tokens.shape[0], -1)
    for block in model.blocks:
        assert isinstance(block, Block)
        q, k, v = block.attention.split_heads(block.norm1(tokens))
        tokens = tokens + block.drop_path(block.scale1(block.attention.mix(q, k, v, key_bias(size))))
        if now := min(r, (tokens.shape[1] - prefix) // 2):
            place = bipartite_matching(k.mean(dim=1)[:, prefix:], now)
            size = tokens.new_ones(tokens.shape[:2], dtype=torch.float32) if size is None else size
            merged, counts = merge(tokens[:, prefix:], size[:, prefix:], place, tokens.shape[1] - prefix - now)
            tokens, size = torch.cat([tokens[:, :prefix], merged], 1), torch.cat([size[:, :prefix], counts], 1)
            groups = place.gather(1, groups)
        tokens = tokens + block.drop_path(block.scale2(block.ffn(block.norm2(tokens))))
    return tokens, size, groups


def answer(model: ViT, images: Tensor, r: int) -> Tensor:
    """Return the logits (B, classes) of ``model`` with r tokens merged in every block; r = 0: exactly its own."""
    tokens, size, _ = encode(model, model.embed(images), r)
    return model.head(weighted_pool(model, model.norm(tokens), size))


class ToMe(nn.Module):
    """A trained ViT made to merge ``r`` patch tokens in every block; shares the weights of ``model``.

    Raises:
        UserError: ``model`` is not a ``ViT`` or has a distillation token, or ``r`` is not a whole number from 0.
    """

    def __init__(self, model: nn.Module, r: int):
        super().__init__()
        if not isinstance(model, ViT) or model.distill_head is not None:
            raise UserError(f"词元合并只能用于没有蒸馏词元的 ViT，而得到的模型是 {type(model).__name__}。")
        if not isinstance(r, int) or r < 0:
            raise UserError(f"每个块合并的词元数 r={r!r} 不可用：需要不小于 0 的整数。")
        self.model, self.r = model, r
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        return answer(self.model, images, self.r)

    def groups(self, images: Tensor) -> Tensor:
        """Return the token in which each patch ended, int64 (B, patches): equal numbers, one token."""
        return encode(self.model, self.model.embed(images), self.r)[2]


class MergingViT(ViT):
    """A ViT that is trained with ``merge`` patch tokens merged in every block."""

    def __init__(self, merge: int = 0, **arguments):  # type: ignore[no-untyped-def]
        super().__init__(**arguments)
        self.merge = merge

    def forward(self, images: Tensor) -> Tensor:
        return answer(self, images, self.merge)
