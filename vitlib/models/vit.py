"""A modern small ViT: Dosovitskiy et al. (2021), arXiv:2010.11929, with what small data taught since.

Read ``attention.py`` first, then this file top-down: feed-forward network, block, model; what comes before the
blocks is in ``embedding.py``.

Letters in shapes: B images, C image channels, S side of an image, p side of a patch, G = S/p side of
the patch grid, N tokens (G*G patches, after the class and register tokens if there are any),
D width (d_model), h heads, d width of a head (D/h unless pruned).
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from ..errors import UserError
from .attention import Attention
from .embedding import STEMS, Positions
from .encoder import EncoderModel
from .parts import NORMS, CosineHead, DropPath, LayerScale


class FeedForward(nn.Module):
    """Two linear layers with GELU between, for each token by itself: (B, N, D) -> (B, N, D)."""

    def __init__(self, d_model: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(d_model, hidden)
        self.fc2 = nn.Linear(hidden, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """One pre-norm encoder block, (B, N, D) -> (B, N, D): attention mixes tokens, the FFN works on each."""

    def __init__(
        self, d_model: int, num_heads: int, hidden: int, dropout: float, attention_dropout: float, drop_path: float,
        layer_scale: float | None, head_dim: int = 0, norm: str = "layer", scale: str = "head", local: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = NORMS[norm](d_model)
        self.attention = Attention(d_model, num_heads, dropout, attention_dropout, head_dim, scale, local)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(d_model, layer_scale)
        self.norm2 = NORMS[norm](d_model)
        self.ffn = FeedForward(d_model, hidden, dropout)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(d_model, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), bias)))
        return x + self.drop_path(self.scale2(self.ffn(self.norm2(x))))


class Features(NamedTuple):
    """What ``ViT.features`` returns; one entry per block."""

    tokens: list[Tensor]  # (B, N, D) after the block, before the final norm
    attention: list[Tensor]  # (B, h, N, N) probabilities; [..., i, j]: how much token i looks at token j


class ViT(EncoderModel):
    """Vision transformer for square images: float (B, C, S, S) -> logits (B, classes).

    Stages, each callable: ``embed``, ``encode``, ``pool``, ``head``; ``features`` shows the inside.

    Args:
        img_size: side for which positions are made; other sides that ``patch_size`` divides work too.
        stem: ``"patch"`` (linear patches), ``"conv"`` (CCT's convolutions), ``"hybrid"``, ``"pooled"``, ``"wide"`` or
            ``"broad"`` (small convolutional networks; for all five ``patch_size`` is a power of two) or ``"shifted"``
            (patches that see half a patch further, Lee et al. 2021).
        pos: ``"learned"``, ``"sincos"`` (fixed, 2-D) or ``"none"``.
        num_layers: blocks; 0 leaves the stem and the head, to see what the blocks are worth.
        pool: ``"mean"`` of the patches, ``"cls"`` (class token) or ``"seq"`` (learned weights, as CCT).
        dropout: after positions, projections and both layers of the feed-forward network.
        attention_dropout: on the attention probabilities.
        drop_path: probability in the last block; it grows linearly from 0 in the first.
        layer_scale: initial value, for example 1e-4, or None for none.
        registers: extra tokens that only store (Darcet et al. 2024, arXiv:2309.16588).
        head_dim: width of a head, as after pruning heads away; 0 for d_model / num_heads.
        norm: ``"layer"``, ``"batch"`` (over the batch's tokens) or ``"rms"`` (Zhang & Sennrich 2019, arXiv:1910.07467).
        scale: attention's logits are divided by the root of the ``"head"``'s width or of the ``"full"`` one, d_model.
        local_attention: a learned temperature, and no token looks at itself (Lee et al. 2021).
        distill_token: a token, and a head on it, that learns from a teacher (DeiT, Touvron et al. 2021,
            arXiv:2012.12877, section 4): in training the model returns two logits, (class head's, token's), in
            evaluation their mean.
        cosine_head: logits are cosines, as LDAM's margins want them (Cao et al. 2019, section 3.2).

    The defaults are part of the keys of stored runs and never change.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        img_size: int = 32,
        patch_size: int = 4,
        d_model: int = 256,
        num_heads: int = 4,
        num_layers: int = 6,
        ffn_hidden_channels: int = 512,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        stem: Literal["patch", "conv", "hybrid", "pooled", "wide", "broad", "shifted"] = "patch",
        pos: Literal["learned", "sincos", "none"] = "learned",
        pool: Literal["mean", "cls", "seq"] = "mean",
        layer_scale: float | None = None,
        registers: int = 0,
        head_dim: int = 0,
        norm: Literal["layer", "batch", "rms"] = "layer",
        scale: Literal["head", "full"] = "head",
        local_attention: bool = False,
        distill_token: bool = False,
        cosine_head: bool = False,
    ):
        super().__init__()
        self.patch_size, self.pooling = patch_size, pool
        # the class token first, then the registers, the distillation token last
        self.num_prefix_tokens = (pool == "cls") + registers + distill_token
        self.stem = STEMS[stem](in_channels, d_model, patch_size)
        self.positions = nn.Identity() if pos == "none" else Positions(pos, img_size // patch_size, d_model)
        self.prefix_tokens = (
            nn.Parameter(torch.empty(1, self.num_prefix_tokens, d_model)) if self.num_prefix_tokens else None
        )
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                d_model, num_heads, ffn_hidden_channels, dropout, attention_dropout,
                drop_path * i / max(num_layers - 1, 1), layer_scale, head_dim, norm, scale, local_attention,
            )
            for i in range(num_layers)
        )  # fmt: skip
        self.norm = NORMS[norm](d_model)
        self.importance = nn.Linear(d_model, 1) if pool == "seq" else None
        self.head = (CosineHead if cosine_head else nn.Linear)(d_model, num_classes)
        self.distill_head = nn.Linear(d_model, num_classes) if distill_token else None
        self.initialise()

    def initialise(self) -> None:
        """Draw linear weights and prefix tokens from a normal of deviation 0.02; biases are 0.

        As timm, whose truncation lies at 100 deviations. ``trunc_normal_`` itself draws other
        numbers in other versions of torch; ``normal_`` does not.
        """
        if self.prefix_tokens is not None:
            nn.init.normal_(self.prefix_tokens, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Turn images (B, C, S, S) into tokens (B, N, D) that know their places.

        Raises:
            UserError: the image is not square, or the patch size does not divide its side.
        """
        height, width = images.shape[-2:]
        if height != width or height % self.patch_size:
            raise UserError(
                f"图像大小 {height}×{width} 不合适：ViT 需要正方形图像，边长是 patch_size={self.patch_size} 的倍数。"
            )
        tokens = self.positions(rearrange(self.stem(images), "B D y x -> B (y x) D"))
        # under autocast too, and without positions: a sum over all blocks is not for bfloat16
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        if self.prefix_tokens is not None:
            tokens = torch.cat([self.prefix_tokens.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        # laid out token by token: otherwise every block inherits the stem's layout, and copies where it computes
        return self.dropout(tokens).contiguous()

    def encode(self, tokens: Tensor) -> Tensor:
        """Run all blocks and the final norm: (B, N, D) -> (B, N, D)."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        """Sum an image up in one vector: (B, N, D) -> (B, D)."""
        if self.pooling == "cls":
            return tokens[:, 0]
        patches = tokens[:, self.num_prefix_tokens :]
        if self.importance is None:
            return patches.mean(dim=1)
        weights = self.importance(patches).softmax(dim=1)
        return einsum(weights, patches, "B N one, B N D -> B D")

    def classify(self, tokens: Tensor) -> Any:
        """Return the logits of encoded tokens (B, N, D): (B, classes), two of them when a distillation token trains."""
        logits = self.head(self.pool(tokens))
        if self.distill_head is None:
            return logits
        taught = self.distill_head(tokens[:, self.num_prefix_tokens - 1])
        return (logits, taught) if self.training else (logits + taught) / 2

    def forward(self, images: Tensor) -> Any:
        return self.classify(self.encode(self.embed(images)))

    def features(self, images: Tensor) -> Features:
        """Return every block's tokens and attention maps (by the plain formula), in evaluation mode."""
        tokens, found = self.embed(images), Features([], [])
        for block in self.blocks:
            found.attention.append(block.attention.weights(block.norm1(tokens)))  # type: ignore[operator, union-attr]
            tokens = block(tokens)
            found.tokens.append(tokens)
        return found
