"""Why a remedy works or not, looked at in the model: likeness of patches, gradients of classes, pictures restored."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitlib.augment import to_float
from vitlib.models import OriginalViT
from vitlib.models.mae import MAE
from vitlib.rng import derive


@torch.no_grad()
def patch_likeness(model: OriginalViT, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return for each pair of patches of one image how far apart they look and how alike their features are.

    images: uint8 (B, 3, H, W). The first array is the root mean square difference of the pixels (in [-1, 1]), the
    second the cosine of the encoder's outputs less their mean over all patches, without which every pair of a
    narrow cone of features looks alike; both (B * N (N - 1) / 2,).
    """
    pixels = to_float(images, "half")
    features = model.eval().encode(model.embed(pixels))
    patch = pixels.shape[-1] // features.shape[-1]
    tokens = rearrange(features, "B C H W -> B (H W) C")
    tokens = F.normalize(tokens - tokens.mean((0, 1)), dim=-1)
    looks = rearrange(pixels, "B c (H p) (W q) -> B (H W) (c p q)", p=patch, q=patch)
    one, other = torch.triu_indices(tokens.shape[1], tokens.shape[1], offset=1)
    apart = torch.cdist(looks, looks) / looks.shape[-1] ** 0.5
    return apart[:, one, other].flatten().numpy(), (tokens @ tokens.mT)[:, one, other].flatten().numpy()


def in_bins(apart: np.ndarray, cosine: np.ndarray, bins: int = 10) -> dict[str, list[float]]:
    """Return the means of ``patch_likeness`` in bins of equally many pairs, those that look most alike first."""
    groups = np.array_split(np.argsort(apart, kind="stable"), bins)
    return {
        name: [float(values[group].mean()) for group in groups]
        for name, values in (("apart", apart), ("cosine", cosine))
    }


def class_gradients(model: nn.Module, images: Tensor, labels: Tensor, classes: int, normalize: str) -> np.ndarray:
    """Return the norm of the gradient of each class's mean cross-entropy over all parameters, (classes,).

    images: uint8 (B, 3, H, W), labels: int64 (B,). NaN for a class without images, on the model's device. In the gradient of the whole
    training set a class of share pi counts pi times its own norm, and with class weights w pi times w.
    """
    model.eval()
    norms = np.full(classes, np.nan)
    for label in range(classes):
        mine = labels == label
        if mine.any():
            loss = F.cross_entropy(model(to_float(images[mine], normalize)), labels[mine])
            gradients: Sequence[Tensor] = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
            norms[label] = float(nn.utils.get_total_norm(gradients))
    return norms


@torch.no_grad()
def restored(model: MAE, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Mask normalised images (B, 3, S, S) by ``seed``; return them masked, and restored where they were masked.

    The network predicts normalised patches: each is shown with the mean and deviation of the true one.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "mask"))
        predicted, hidden = model(images)
    target, gap = model.patches(images), hidden[:, :, None]
    variance, mean = torch.var_mean(target, dim=2, keepdim=True)
    filled = torch.lerp(target, predicted.float() * (variance + 1e-6).sqrt() + mean, gap)
    grey = torch.full_like(target, float(images.amin() < 0) * -0.5 + 0.5)
    side, grid = model.patch_size, images.shape[-1] // model.patch_size
    masked, whole = (
        rearrange(patches, "B (y x) (p q C) -> B C (y p) (x q)", p=side, q=side, y=grid)
        for patches in (torch.lerp(target, grey, gap), filled)
    )
    return masked, whole
