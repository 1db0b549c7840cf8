"""Token merging: a trained ViT made faster without training (Bolya et al. 2023, arXiv:2210.09461).

In every block, between attention and feed-forward network, the r most redundant tokens are merged into the
tokens that they resemble most, so that later layers see fewer of them.

Letters in shapes: B images, N tokens, P prefix tokens (class token and registers, never merged),
M = N - P patch tokens, D width (d_model), h heads, d = D/h width of a head.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from vitlib.errors import UserError
from vitlib.models import ViT
from vitlib.models.vit import Attention, Block


def bipartite_matching(features: Tensor, r: int) -> Tensor:
    """Choose ``r`` tokens to merge; return each token's place among those left: (B, M, d) -> int64 (B, M).

    Section 3 of the paper: tokens are split alternately into two sets, each token of the first finds the
    one of the second that is most similar (cosine), and the ``r`` most similar pairs merge. A place is thus
    in 0 ... M - r - 1; tokens with the same place become one, and the order of those left is kept.
    ``r`` is at most M // 2.
    """
    unit = F.normalize(features, dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    closeness, partner = similarity.max(dim=-1)
    merging = closeness.topk(r, dim=-1).indices
    own = repeat(torch.arange(features.shape[1], device=features.device), "M -> B M", B=len(features))
    target = own.scatter(1, 2 * merging, 2 * partner.gather(1, merging) + 1)
    place = (target == own).cumsum(dim=1) - 1
    return place.gather(1, target)


def merge(tokens: Tensor, size: Tensor, place: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Average the tokens of each place, weighted by size: (B, M, D), (B, M) -> (B, left, D), (B, left).

    The size of a token is the number of patches in it.
    """
    new_size = size.new_zeros(len(size), left).scatter_add(1, place, size)
    # as a product with a matrix of weights: for 64 tokens several times faster than scattering D channels
    share = (size / new_size.gather(1, place))[:, None]
    weights = size.new_zeros(len(size), left, size.shape[1]).scatter(1, place[:, None], share)
    return weights.to(tokens.dtype) @ tokens, new_size


def attend(attention: Attention, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Proportional attention (paper, equation 1): each key's logit gets the log of its token's size.

    A merged token thus counts for as many patches as it holds. Returns the output (B, N, D) and the keys
    averaged over the heads (B, N, d), by which tokens are compared. ``size`` None means that all are 1.
    """
    q, k, v = attention.split_heads(x)
    bias = None if size is None else rearrange(size.log().to(q.dtype), "B N -> B 1 1 N")
    dropout = attention.attention_dropout if attention.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return attention.dropout(attention.proj(rearrange(out, "B h N d -> B N (h d)"))), k.mean(dim=1)


class ToMe(nn.Module):
    """A ViT that merges ``r`` patch tokens in every block: images (B, C, S, S) -> logits (B, classes).

    Shares the weights of ``model``, which stays as it is; ``r = 0`` gives exactly its logits. Where fewer
    than 2r patch tokens are left, half of them merge. Pooling, like attention, weighs by size.

    Raises:
        UserError: ``model`` is not a ``ViT``, or ``r`` is not a whole number from 0.
    """

    def __init__(self, model: nn.Module, r: int):
        super().__init__()
        if not isinstance(model, ViT):
            raise UserError(f"词元合并只能用于 ViT，而得到的模型是 {type(model).__name__}。")
        if not isinstance(r, int) or r < 0:
            raise UserError(f"每个块合并的词元数 r={r!r} 不可用：需要不小于 0 的整数。")
        self.model, self.r = model, r
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        tokens, size, _ = self.encode(self.model.embed(images))
        return self.model.head(self.pool(self.model.norm(tokens), size))

    def groups(self, images: Tensor) -> Tensor:
        """Return the token in which each patch ended, int64 (B, patches): equal numbers, one token."""
        return self.encode(self.model.embed(images))[2]

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Run all blocks: tokens (B, N, D) -> tokens left (B, n, D), their sizes (B, n), ``groups``.

        The sizes are None when nothing was merged.
        """
        prefix = self.model.num_prefix_tokens
        size: Tensor | None = None
        patches = torch.arange(tokens.shape[1] - prefix, device=tokens.device)
        groups = repeat(patches, "M -> B M", B=len(tokens))
        for block in self.model.blocks:
            assert isinstance(block, Block)
            attended, keys = attend(block.attention, block.norm1(tokens), size)
            tokens = tokens + block.drop_path(block.scale1(attended))
            if r := min(self.r, (tokens.shape[1] - prefix) // 2):
                place = bipartite_matching(keys[:, prefix:], r)
                tokens, size = self.shrink(tokens, size, place, tokens.shape[1] - prefix - r)
                groups = place.gather(1, groups)
            tokens = tokens + block.drop_path(block.scale2(block.ffn(block.norm2(tokens))))
        return tokens, size, groups

    def shrink(self, tokens: Tensor, size: Tensor | None, place: Tensor, left: int) -> tuple[Tensor, Tensor]:
        """Merge the patch tokens, (B, N, D) -> (B, P + left, D), and keep the prefix as it is."""
        prefix = self.model.num_prefix_tokens
        size = tokens.new_ones(tokens.shape[:2], dtype=torch.float32) if size is None else size
        merged, counts = merge(tokens[:, prefix:], size[:, prefix:], place, left)
        return torch.cat([tokens[:, :prefix], merged], 1), torch.cat([size[:, :prefix], counts], 1)

    def pool(self, tokens: Tensor, size: Tensor | None) -> Tensor:
        """Sum an image up as the model does, each token counting for its patches: (B, n, D) -> (B, D)."""
        if size is None or self.model.pooling == "cls":
            return self.model.pool(tokens)
        prefix = self.model.num_prefix_tokens
        tokens, size = tokens[:, prefix:], size[:, prefix:]
        if self.model.importance is None:
            weights = size / size.sum(dim=1, keepdim=True)
        else:
            weights = (self.model.importance(tokens).squeeze(-1) + size.log()).softmax(dim=1)
        return einsum(weights, tokens, "B n, B n D -> B D")
