"""What one training step minimises: the engine asks an objective for the loss of a batch and nothing else.

Letters: B images of a batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vitlib.losses import Loss
from vitlib.recipe import Recipe


class Objective:
    """Classification: the recipe's loss on the model's logits, plus what the model itself asks for.

    A model that has more to minimise (a ratio of kept tokens, say) leaves it in its attribute
    ``auxiliary_loss``, a scalar tensor, during the forward pass in training mode.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, loss: Loss, teacher: nn.Module | None = None) -> None:
        self.recipe, self.model, self.loss, self.teacher = recipe, model, loss, teacher

    def __call__(
        self, forward: Callable[[Tensor], Any], pixels: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the scalar loss of a batch, and its logits (B, K) where there are any.

        forward: the model, perhaps compiled; pixels: float32 (B, C, H, W) as augmented and normalised;
        targets: int64 (B,), or float32 (B, K) where images were mixed.
        """
        logits = forward(pixels)
        loss = self.loss(logits, targets)
        extra = getattr(self.model, "auxiliary_loss", None)
        return (loss if extra is None else loss + extra), logits.detach()

    def after_step(self, step: int, steps: int) -> None:
        """Do what follows the optimiser's update of ``step`` (0-based) of ``steps``."""


class Reconstruct(Objective):
    """Plain autoencoding: the mean squared error between a picture and the model's picture of it."""

    def __call__(
        self, forward: Callable[[Tensor], Any], pixels: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return F.mse_loss(forward(pixels).float(), pixels), None


OBJECTIVES: dict[str, type[Objective]] = {"classify": Objective, "autoencode": Reconstruct}
