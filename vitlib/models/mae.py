"""The masked autoencoder of He et al. (2022), arXiv:2111.06377, around the encoder of the modern ViT.

Letters in shapes: B images, C image channels, S side of an image, p side of a patch, N = (S/p)^2 patches,
M masked ones, D width of the encoder, E width of the decoder.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .embedding import Positions
from .vit import Block, ViT


class Decoder(nn.Module):
    """Fill the gaps with one learned token, look around in a few narrow blocks, and say every patch's pixels."""

    def __init__(self, d_model: int, grid: int, width: int, num_layers: int, pixels: int):
        super().__init__()
        self.embed = nn.Linear(d_model, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = Positions("sincos", grid, width)
        self.blocks = nn.ModuleList(Block(width, 4, 2 * width, 0.0, 0.0, 0.0, None) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, pixels)

    def forward(self, tokens: Tensor, prefix: int, order: Tensor) -> Tensor:
        """Turn encoded tokens (B, prefix + N - M, D), patches in the ``order`` (B, N) drawn, into pixels (B, N, p*p*C)."""
        tokens = self.embed(tokens)
        seen = tokens[:, prefix:]
        gaps = self.mask_token.to(seen.dtype).expand(len(seen), order.shape[1] - seen.shape[1], -1)
        patches = pick(torch.cat([seen, gaps], dim=1), order.argsort(dim=1))  # back in their places
        tokens = torch.cat([tokens[:, :prefix], self.positions(patches)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(self.norm(tokens[:, prefix:]))


class MAE(ViT):
    """Masked autoencoder: images (B, C, S, S) -> (predicted patches (B, N, p*p*C), hidden (B, N), 1 where masked).

    The encoder, whose parameters are named as :class:`ViT`'s and are handed over exactly by ``load_encoder``, runs
    on the visible patches only. A convolutional or shifted stem is run on the whole image and masked after it, so
    a visible token there knows a little of its masked neighbours, and the task is easier than with linear patches.
    Which patches are masked comes from torch's global generator. Takes all of ViT's arguments, too.

    Args:
        mask_ratio: share of the patches that are hidden; at least one stays visible.
        decoder_width, decoder_layers: the decoder's size (4 heads); it is thrown away after pre-training.
    """

    def __init__(
        self,
        mask_ratio: float = 0.75,
        decoder_width: int = 128,
        decoder_layers: int = 2,
        in_channels: int = 3,
        img_size: int = 32,
        d_model: int = 256,
        **others: Any,
    ):
        super().__init__(in_channels=in_channels, img_size=img_size, d_model=d_model, **others)
        self.head = self.importance = self.distill_head = None  # type: ignore[assignment]
        self.mask_ratio, grid = mask_ratio, img_size // self.patch_size
        self.decoder = Decoder(d_model, grid, decoder_width, decoder_layers, self.patch_size**2 * in_channels)
        self.initialise()
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    def forward_encoder(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the visible patches; return tokens (B, prefix + N - M, D), ``order`` and ``hidden``, both (B, N)."""
        tokens, prefix = self.embed(images), self.num_prefix_tokens
        count = tokens.shape[1] - prefix
        seen = max(1, round(count * (1 - self.mask_ratio)))
        order = torch.rand(len(images), count, device=images.device).argsort(dim=1)
        hidden = torch.ones(len(images), count, device=images.device).scatter(1, order[:, :seen], 0.0)
        visible = pick(tokens[:, prefix:], order[:, :seen])
        return self.encode(torch.cat([tokens[:, :prefix], visible], dim=1)), order, hidden

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens, order, hidden = self.forward_encoder(images)
        return self.decoder(tokens, self.num_prefix_tokens, order), hidden

    def patches(self, images: Tensor) -> Tensor:
        """Cut images (B, C, S, S) into patches (B, N, p*p*C)."""
        side = self.patch_size
        return rearrange(images, "B C (y p) (x q) -> B (y x) (p q C)", p=side, q=side)

    def loss(self, predicted: Tensor, hidden: Tensor, images: Tensor) -> Tensor:
        """Return the mean squared error on the masked patches, each brought to mean 0 and deviation 1 (section 3)."""
        target = self.patches(images)
        variance, mean = torch.var_mean(target, dim=2, keepdim=True)
        errors = (predicted - (target - mean) / (variance + 1e-6).sqrt()).square().mean(dim=2)
        return (errors * hidden).sum() / hidden.sum().clamp_min(1)


def pick(tokens: Tensor, places: Tensor) -> Tensor:
    """Return the tokens (B, N, D) at these places, int64 (B, M): (B, M, D)."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
