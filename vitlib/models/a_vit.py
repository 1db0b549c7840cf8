"""A-ViT: every token decides for itself when it has been computed enough (Yin et al. 2022, arXiv:2112.07658).

Letters in shapes: B images, N tokens, n tokens that still run, D width, L blocks.
"""

import torch
from einops import repeat
from torch import Tensor

from .vit import ViT
from .weighted import key_bias

GAIN, SHIFT = 5.0, -10.0  # of the halting score sigmoid(GAIN * first channel + SHIFT), equation 4; no new weights
ENOUGH = 0.99  # a token halts when its scores sum to this (1 - epsilon)
PONDER, PRIOR = 5e-4, 0.1  # weights of the two losses


class AdaptiveViT(ViT):
    """A ViT whose tokens halt at a depth of their own; ``halting`` False is the plain ViT.

    A token's result is the average of its states, weighted by its halting scores (the last one takes what is
    left to 1); the paper does so for the class token, here it is every token, since most pool without one.
    In training halted tokens are masked in attention, and ``auxiliary_loss`` holds the ponder loss (equation
    9) and the distance of the mean halting distribution from a bell around block ``target_depth`` (equation
    12; the divergence is taken the other way round, KL(target, mean), because its slope does not vanish when,
    as at the start, no token halts). In evaluation halted tokens really leave; a batch keeps as many places
    as its busiest image needs.
    """

    auxiliary_loss: Tensor | None = None

    def __init__(self, halting: bool = True, target_depth: int = 4, **arguments):  # type: ignore[no-untyped-def]
        super().__init__(**arguments)
        self.halting, self.target_depth = halting, target_depth

    def forward(self, images: Tensor, gather: bool = True) -> Tensor:
        tokens = self.embed(images)
        if self.halting and len(self.blocks):
            return self.head(self.pool(self.norm(self.walk(tokens, gather and not self.training)[0])))
        return self.head(self.pool(self.encode(tokens)))

    def depths(self, images: Tensor) -> Tensor:
        """Return how many blocks each token runs through, int64 (B, N), in evaluation mode."""
        return self.walk(self.embed(images), False)[1].long()

    def walk(self, tokens: Tensor, gather: bool) -> tuple[Tensor, Tensor]:
        """Run all blocks: tokens (B, N, D) -> results (B, N, D) and depths (B, N), float32."""
        batch, count, width = tokens.shape
        gather = gather and not tokens.is_meta  # stand-ins for shapes have nothing to halt on: full depth
        place = repeat(torch.arange(count, device=tokens.device), "N -> B N", B=batch)
        active = tokens.new_ones(batch, count, dtype=torch.float32)
        spent = torch.zeros_like(active)  # sum of the scores so far
        depth, rest = torch.zeros_like(active), torch.zeros_like(active)
        result = torch.zeros(batch, count, width, device=tokens.device)
        shares = []
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, key_bias(active) if i else None)
            depth = depth.scatter_add(1, place, active)
            score = torch.sigmoid(GAIN * tokens[..., 0].float() + SHIFT)
            halts = (spent + score >= ENOUGH) if i + 1 < len(self.blocks) else torch.ones_like(active).bool()
            share = torch.where(halts, 1 - spent, score) * active
            result = result.scatter_add(1, repeat(place, "B n -> B n D", D=width), share[..., None] * tokens.float())
            rest = rest.scatter_add(1, place, share * halts)
            spent, active = spent + share, active * ~halts
            shares.append(share.mean())
            if gather and (most := int(active.sum(dim=1).max())) < active.shape[1]:
                if most == 0:
                    break
                stay = active.argsort(dim=1, descending=True, stable=True)[:, :most]
                place, active, spent = (x.gather(1, stay) for x in (place, active, spent))
                tokens = tokens.gather(1, repeat(stay, "B n -> B n D", D=width))
        if self.training:
            self.auxiliary_loss = PONDER * (depth + rest).mean() + PRIOR * self._distance(torch.stack(shares))
        return result, depth

    def _distance(self, shares: Tensor) -> Tensor:
        """Return KL(target, shares) for the mean share of each block (L,), which sum to 1."""
        steps = torch.arange(1, len(shares) + 1, device=shares.device)
        target = torch.softmax(-((steps - self.target_depth) ** 2) / 2.0, dim=0)
        return (target * (target.log() - (shares + 1e-8).log())).sum()
