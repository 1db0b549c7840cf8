"""The same small ViT from five sources: one shape, ten classes, float (B, 3, 32, 32) -> logits (B, 10).

Width 256, 6 blocks, 4 heads, FFN 512, patches of 4, no dropout, so that every library does the same arithmetic
but for what its design adds: a class token (65 instead of 64 tokens) in vit-pytorch and torchvision, the
original's head of 134 M parameters.
"""

from collections.abc import Callable

from torch import nn

from vitlib.errors import UserError
from vitlib.models import create_model


def ours() -> nn.Module:
    """The modern ViT of this project."""
    return create_model("vit")


def original() -> nn.Module:
    """The original report's ViT, with its head."""
    return create_model("original", dropout=0.0)


def original_as_written() -> nn.Module:
    """The original report's ViT with its dropout of 0.1."""
    return create_model("original")


def timm() -> nn.Module:
    """timm's VisionTransformer, mean pooling."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=256, depth=6, num_heads=4, mlp_ratio=2.0, num_classes=10,
        class_token=False, global_pool="avg", fc_norm=False,
    )  # fmt: skip


def torchvision() -> nn.Module:
    """torchvision's VisionTransformer, class token."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=4, num_layers=6, num_heads=4, hidden_dim=256, mlp_dim=512, num_classes=10
    )


def vit_pytorch() -> nn.Module:
    """vit-pytorch's ViT, mean pooling over its tokens, the class token included."""
    from vit_pytorch import ViT

    return ViT(
        image_size=32, patch_size=4, num_classes=10, dim=256, depth=6, heads=4, dim_head=64, mlp_dim=512, pool="mean"
    )


PEERS: dict[str, Callable[[], nn.Module]] = {
    "ours": ours,
    "timm": timm,
    "vit-pytorch": vit_pytorch,
    "torchvision": torchvision,
    "original": original,
}


def build(name: str) -> nn.Module:
    """Return one of PEERS, or ``original as written``, untrained; raises UserError when its library is not installed."""
    try:
        return (PEERS | {"original as written": original_as_written})[name]()
    except ModuleNotFoundError as error:
        raise UserError(f"缺少对照库 {error.name}：请在项目文件夹里运行 pip install -e '.[bench]'。") from error
