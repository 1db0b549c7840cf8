"""The original report's ViT and autoencoder, exactly, defects included.

Nothing here is to be improved: the report's experiments need the original as it was, and the
golden outputs in the tests pin it. Two named corrections exist because the report tests them by
experiment; both are off by default. The modern model, in ``vit.py``, shares none of these layers.

Letters in shapes: B images, C channels (d_model), H W rows and columns of the patch grid,
N = H*W patches, h heads, d = C/h width of a head, p side of a patch.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .encoder import EncoderModel


class OriginalAttention(nn.Module):
    """Multi-head self-attention (B, C, H, W) -> (B, C, H, W), without an output projection.

    Two defects are kept. Logits are divided by sqrt(C), the whole width, where the formula has
    sqrt(d). With ``noise="original"`` each logit becomes -inf with probability ``dropout``, also in
    evaluation; a row that is -inf throughout turns into NaN. ``noise="dropout"`` is the correction:
    dropout on the probabilities, in training only. The noise draws from torch's global generator.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float, noise: str):
        super().__init__()
        self.num_heads, self.dropout, self.noise = num_heads, dropout, noise
        self.scale = d_model**-0.5
        self.qkv = nn.Conv2d(d_model, 3 * d_model, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[2]
        q, k, v = rearrange(self.qkv(x), "b (three h d) H W -> three b h (H W) d", three=3, h=self.num_heads)
        logits = q @ k.transpose(-2, -1) * self.scale
        if self.noise == "original" and self.dropout:
            # float32 draws whatever the autocast type, so that the probability is exact
            erased = torch.rand(logits.shape, device=x.device) < self.dropout
            logits = logits.masked_fill(erased, float("-inf"))
        attention = logits.softmax(dim=-1)
        if self.noise == "dropout":
            attention = F.dropout(attention, self.dropout, self.training)
        return rearrange(attention @ v, "b h (H W) d -> b (h d) H W", H=rows)


class OriginalBlock(nn.Module):
    """One encoder block (B, C, H, W) -> (B, C, H, W): attention, then a two-layer network per patch."""

    def __init__(self, d_model: int, num_heads: int, hidden: int, dropout: float, noise: str):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(d_model)
        self.attention = OriginalAttention(d_model, num_heads, dropout, noise)
        self.norm2 = nn.BatchNorm2d(d_model)
        self.ffn = nn.Sequential(
            nn.Conv2d(d_model, hidden, kernel_size=1),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(hidden, d_model, kernel_size=1),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class FlatHead(nn.Sequential):
    """Classifier (B, C, H, W) -> (B, classes); its first layer has (C*H*W)^2 / 2 weights."""

    def __init__(self, features: int, num_classes: int):
        super().__init__(
            nn.Flatten(), nn.Linear(features, features // 2), nn.GELU(), nn.Linear(features // 2, num_classes)
        )


class PooledHead(nn.Sequential):
    """The correction ``head="linear"``: mean over patches, one linear layer. (B, C, H, W) -> (B, classes)."""

    def __init__(self, d_model: int, num_classes: int):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(d_model, num_classes))


class ImageHead(nn.Sequential):
    """The autoencoder's decoder (B, C, H, W) -> (B, channels, H*p, W*p), values in (-1, 1)."""

    def __init__(self, d_model: int, channels: int, patch_size: int):
        super().__init__(
            nn.ConvTranspose2d(d_model, channels, kernel_size=patch_size, stride=patch_size),
            nn.GELU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.Tanh(),
        )


class OriginalViT(EncoderModel):
    """The original's classifier, (B, 3, H, W) -> logits (B, classes); ``classifier=False``: its autoencoder.

    Stages, each callable: ``embed``, ``encode``, ``head``. Images are float, in the recipe's range.
    No class token, no positions, no final norm; BatchNorm in place of LayerNorm.
    ``load_encoder(autoencoder.state_dict())`` takes over the pre-trained patch embedding and blocks.
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
        dropout: float = 0.1,
        classifier: bool = True,
        attention_noise: Literal["original", "dropout"] = "original",
        head: Literal["original", "linear"] = "original",
    ):
        super().__init__()
        self.img_size = img_size
        self.patch_embedding = nn.Conv2d(in_channels, d_model, kernel_size=patch_size, stride=patch_size)
        self.blocks = nn.Sequential(
            *(
                OriginalBlock(d_model, num_heads, ffn_hidden_channels, dropout, attention_noise)
                for _ in range(num_layers)
            )
        )
        self.head: nn.Module
        if not classifier:
            self.head = ImageHead(d_model, in_channels, patch_size)
        elif head == "linear":
            self.head = PooledHead(d_model, num_classes)
        else:
            self.head = FlatHead(d_model * (img_size // patch_size) ** 2, num_classes)
        drawn = [self.patch_embedding, self.blocks] + ([self.head] if classifier else [])
        for module in nn.ModuleList(drawn).modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def embed(self, images: Tensor) -> Tensor:
        """Resize to ``img_size`` and cut into patches: (B, 3, any, any) -> (B, C, H, W)."""
        images = F.interpolate(images, size=(self.img_size, self.img_size), mode="bilinear")
        return self.patch_embedding(images)

    def encode(self, x: Tensor) -> Tensor:
        """Run all blocks: (B, C, H, W) -> (B, C, H, W)."""
        return self.blocks(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encode(self.embed(images)))
