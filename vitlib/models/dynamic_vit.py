"""DynamicViT: small networks decide which patches go on (Rao et al. 2021, arXiv:2106.02034).

Letters in shapes: B images, N tokens, M patch tokens among them, D width.
"""

import torch
import torch.nn.functional as F
from einops import einsum, repeat
from torch import Tensor, nn

from .vit import ViT
from .weighted import key_bias, precise, weighted_pool

RATIO_WEIGHT = 2.0  # of the ratio loss; the paper's lambda


class Predictor(nn.Module):
    """Judge patch tokens by themselves and by what is left of the image (paper, equations 1 to 5).

    Tokens (B, M, D) and weights (B, M), 0 for those dropped -> log-probabilities (B, M, 2), the first to stay.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.local = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, d_model), nn.GELU())
        self.out = nn.Sequential(
            nn.Linear(d_model, d_model // 2),
            nn.GELU(),
            nn.Linear(d_model // 2, d_model // 4),
            nn.GELU(),
            nn.Linear(d_model // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, tokens: Tensor, weight: Tensor) -> Tensor:
        with precise(tokens.device):
            local, context = self.local(tokens.float()).chunk(2, dim=-1)
            context = einsum(context, weight, "B M D, B M -> B D") / (weight.sum(dim=1, keepdim=True) + 1e-6)
            return self.out(torch.cat([local, repeat(context, "B D -> B M D", M=tokens.shape[1])], dim=-1))


class DynamicViT(ViT):
    """A ViT that keeps a share ``keep_ratio`` of its patches at each of three depths (quarters of the blocks).

    In training, decisions are drawn (Gumbel softmax, straight through) and dropped tokens are masked in
    attention and pooling, so that gradients reach the decisions; ``auxiliary_loss`` asks for the ratio
    (equation 15). In evaluation the best-judged patches are gathered and the others are really gone; their
    number is rounded, where the paper rounds down.
    ``keep_ratio`` 1 is the plain ViT. The paper's two distillation losses are the recipe's ``distill``; for the one
    on the tokens, ``encoded`` holds the last batch's in training, (B, N, D), and their weights (B, N).
    """

    added_layers = ("predictors",)
    auxiliary_loss: Tensor | None = None
    encoded: tuple[Tensor, Tensor] | None = None

    def __init__(self, keep_ratio: float = 0.7, **arguments):  # type: ignore[no-untyped-def]
        super().__init__(**arguments)
        depth = len(self.blocks)
        stages = sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3)} - {depth})
        self.keep_ratio, self.stages = keep_ratio, stages if keep_ratio < 1 else []
        width = self.head.in_features
        self.predictors = nn.ModuleList(Predictor(width) for _ in self.stages)
        self.predictors.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, gather: bool = True) -> Tensor:
        tokens, weight, _ = self.walk(images, gather and not self.training)
        tokens = self.norm(tokens)
        if self.training:
            self.encoded = tokens, torch.ones_like(tokens[..., 0]) if weight is None else weight
        return self.head(weighted_pool(self, tokens, weight))

    def gap(self, others: Tensor) -> Tensor:
        """Return the mean squared difference of the last batch's patches that were kept from ``others`` (B, N, D)."""
        assert self.encoded is not None, "gap() follows a forward pass in training mode"
        tokens, weight = (values[:, self.num_prefix_tokens :].float() for values in self.encoded)
        kept = weight.detach()
        errors = (tokens - others[:, self.num_prefix_tokens :].float()).square().mean(dim=2)
        return (errors * kept).sum() / kept.sum().clamp_min(1)

    def survivors(self, images: Tensor) -> Tensor:
        """Return which patches are left after each stage, bool (B, stages, patches), in evaluation mode."""
        return torch.stack(self.walk(images, False)[2], dim=1).bool()

    def walk(self, images: Tensor, gather: bool) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Run all blocks; return tokens (B, n, D), their weights (B, n) or None, and the patches' after each stage."""
        tokens, prefix = self.embed(images), self.num_prefix_tokens
        patches = tokens.shape[1] - prefix
        weight: Tensor | None = None
        after: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i in self.stages:
                weight = tokens.new_ones(tokens.shape[:2], dtype=torch.float32) if weight is None else weight
                scores = self.predictors[len(after)](tokens[:, prefix:], weight[:, prefix:])
                least = max(1, round(patches * self.keep_ratio ** (len(after) + 1)))
                if gather:
                    best = scores[..., 0].topk(least).indices.sort().values + prefix
                    stay = torch.cat([best.new_tensor(range(prefix)).expand(best.shape[0], -1), best], dim=1)
                    tokens = tokens.gather(1, repeat(stay, "B n -> B n D", D=tokens.shape[2]))
                    after.append(best)
                    weight = None
                else:
                    after.append(self._decide(scores, weight[:, prefix:], least))
                    weight = torch.cat([weight[:, :prefix], after[-1]], dim=1)
            tokens = block(tokens, key_bias(weight))
        if self.training and after:
            misses = [(w.mean(dim=1) - self.keep_ratio ** (s + 1)).square().mean() for s, w in enumerate(after)]
            self.auxiliary_loss = RATIO_WEIGHT * torch.stack(misses).mean()
        return tokens, weight, after

    def _decide(self, scores: Tensor, weight: Tensor, least: int) -> Tensor:
        """Return the new weights (B, M) of the patches: drawn in training, the ``least`` best in evaluation."""
        best = scores[..., 0].masked_fill(weight == 0, -torch.inf).topk(1 if self.training else least).indices
        judged = torch.zeros_like(weight).scatter(1, best, 1.0)
        if not self.training:
            return judged
        drawn = weight * F.gumbel_softmax(scores.float(), hard=True)[..., 0]
        return torch.where(drawn.any(dim=1, keepdim=True), drawn, judged)  # an image without patches would be NaN
