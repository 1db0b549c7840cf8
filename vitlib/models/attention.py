"""Self-attention, the part of the ViT in which tokens look at each other.

Letters in shapes: B images, N tokens, D width (d_model), h heads, d width of a head (D/h unless pruned).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + bias) v for queries, keys and values (B, h, N, d), each head by itself.

    One fused kernel, but for bfloat16 on a processor: there the backward pass of that kernel takes seven times
    as long as the formula's, step by step (benchmarks/NOTES.md), and short sequences need no memory spared.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= 512:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        weights = (scores if bias is None else scores + bias).softmax(dim=-1)
        return F.dropout(weights, dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, bias, dropout)


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> (B, N, D): softmax(q k^T / sqrt(d)) v for each head.

    ``scale="full"`` divides by sqrt(D) instead, as the original report's code does. ``local`` is the locality
    self-attention of Lee et al. 2021 (arXiv:2112.13492, section 3.3): the divisor is learned, and no token looks
    at itself.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        attention_dropout: float,
        head_dim: int = 0,
        scale: str = "head",
        local: bool = False,
    ):
        super().__init__()
        self.num_heads, self.attention_dropout, self.scale = num_heads, attention_dropout, scale
        inner = num_heads * head_dim or d_model
        self.qkv = nn.Linear(d_model, 3 * inner)
        self.proj = nn.Linear(inner, d_model)
        self.dropout = nn.Dropout(dropout)
        self.sharpness = nn.Parameter(torch.ones(())) if local else None  # the learned factor on the logits

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, h, N, d)."""
        q, k, v = rearrange(self.qkv(x), "B N (three h d) -> three B h N d", three=3, h=self.num_heads)
        if self.scale == "full":
            q = q * (q.shape[-1] / x.shape[-1]) ** 0.5  # what follows divides by sqrt(d)
        if self.sharpness is not None:
            q = q * self.sharpness.to(q.dtype)
        return q, k, v

    def hide_itself(self, q: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return the bias on the logits with each token's own one taken out, where attention is local."""
        if self.sharpness is None:
            return bias
        # finite: a token that is alone then looks at itself instead of becoming NaN
        own = torch.eye(q.shape[-2], dtype=q.dtype, device=q.device) * -1e4
        return own if bias is None else own + bias

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return softmax(q k^T / sqrt(d) + bias) v, projected: (B, N, D); the bias fits (B, h, N, N)."""
        dropout = self.attention_dropout if self.training else 0.0
        out = attend(q, k, v, self.hide_itself(q, bias), dropout)
        return self.dropout(self.proj(rearrange(out, "B h N d -> B N (h d)")))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.mix(*self.split_heads(x), bias)

    def weights(self, x: Tensor) -> Tensor:
        """Return the attention probabilities (B, h, N, N), by the formula as it is written; rows sum to 1."""
        q, k, _ = self.split_heads(x)
        logits, bias = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, self.hide_itself(q, None)
        return (logits if bias is None else logits + bias).softmax(dim=-1)
