"""What one training step minimises: the engine asks an objective for the loss of a batch and nothing else.

Letters: B images of a batch, C channels, H height, W width, K classes, N patches, V views of an image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlib.augment import Augment, EpochDraws, augment
from vitlib.errors import UserError
from vitlib.evaluate import autocast
from vitlib.losses import Loss

if TYPE_CHECKING:
    from vitlib.recipe import Recipe


@dataclass(frozen=True, init=False)
class Distill:
    """How a classifier imitates its teacher: the loss is (1 - weight) x the labels' + weight x the teacher's.

    kind: ``soft`` is temperature^2 x KL(teacher's probabilities at that temperature, the model's) of Hinton et al.
        2015 (arXiv:1503.02531, section 2); ``hard`` the cross-entropy with the teacher's decision; ``token`` the
        same on the logits of the model's distillation token (both: Touvron et al. 2021, arXiv:2012.12877, section 4).
    weight: in (0, 1]; temperature: above 0, of ``soft`` only.
    seeds: so many teachers, of the run's own seed and those after it; their probabilities are averaged.
    tokens: weight of what is added: the squared difference of DynamicViT's tokens, those it kept, from its teacher's,
        a plain ViT of the same shape (Rao et al. 2021, arXiv:2106.02034, section 3.4, with weight 0.5); 0 or more.
    """

    kind: Literal["soft", "hard", "token"] = "soft"
    weight: float = 0.5
    temperature: float = 1.0
    seeds: int = 1
    tokens: float = 0.0

    def __init__(self, **given: Any) -> None:
        known = {item.name: item.default for item in fields(self)}
        for name in given:
            if name not in known:
                raise UserError(f"蒸馏没有叫 {name} 的设定；可用的：{'、'.join(known)}。")
        for name, default in known.items():
            value = given.get(name, default)
            object.__setattr__(self, name, float(value) if isinstance(default, float) else value)
        rules = {
            "kind": (self.kind in ("soft", "hard", "token"), "可选 soft、hard、token"),
            "weight": (0 < self.weight <= 1, "应在 (0, 1] 内"),
            "temperature": (self.temperature > 0, "应大于 0"),
            "tokens": (self.tokens >= 0, "不能为负"),
            "seeds": (type(self.seeds) is int and self.seeds >= 1, "须为不小于 1 的整数"),
        }
        for name, (good, rule) in rules.items():
            if not good:
                raise UserError(f"蒸馏的设定 {name}={getattr(self, name)!r} 不可用：{rule}。")

    def given(self) -> dict[str, Any]:
        """Return what differs from the default, JSON-able."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def imitation(self, logits: Tensor, answers: Tensor) -> Tensor:
        """Return how far logits (B, K) are from the teacher's (B, K), a scalar; both float32."""
        if self.kind != "soft":
            return F.cross_entropy(logits, answers.argmax(1))
        mine, its = (F.log_softmax(values / self.temperature, dim=1) for values in (logits, answers))
        return self.temperature**2 * F.kl_div(mine, its, reduction="batchmean", log_target=True)


class Ensemble(nn.Module):
    """Several classifiers as one: images (B, C, H, W) -> the logarithm of their mean probabilities (B, K)."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        answers = torch.stack([member(images).float().log_softmax(1) for member in self.members])
        return answers.logsumexp(0) - math.log(len(self.members))


class Objective:
    """Classification: the recipe's loss on the model's logits, the teacher's share, and what the model itself asks for.

    A model that has more to minimise (a ratio of kept tokens, say) leaves it in its attribute
    ``auxiliary_loss``, a scalar tensor, during the forward pass in training mode.
    """

    def __init__(self, recipe: "Recipe", model: nn.Module, loss: Loss, teacher: nn.Module | None = None) -> None:
        self.recipe, self.model, self.loss, self.teacher = recipe, model, loss, teacher
        self.switches, self.distill = Augment(**recipe.augment), Distill(**recipe.distill)

    def views(self, images: Tensor, draws: EpochDraws, places: slice) -> list[Tensor]:
        """Return what the model is shown of uint8 images (B, C, H, W), which have these places in the epoch's order.

        Float32 in the recipe's range, one tensor (B, C, H, W) a view; where there is but one, a step is given it alone.
        """
        switches = self.switches.at(draws.epoch, self.recipe.epochs)
        return [augment(images, draws.rows(places), switches, self.recipe.normalize)]

    def __call__(self, forward: Callable[[Any], Any], pixels: Any, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scalar loss of a batch, and its logits (B, K) where there are any.

        forward: the model, perhaps compiled; pixels: what :meth:`views` returned, perhaps mixed;
        targets: int64 (B,), or float32 (B, K) where images were mixed.
        """
        logits = forward(pixels)
        taught = logits  # one head learns from both, unless a distillation token has a head of its own
        if isinstance(logits, tuple):
            logits, taught = logits
        loss = self.loss(logits, targets)
        if self.teacher is not None:
            with torch.no_grad(), autocast(pixels.device):
                one: Any = self.teacher.members[0] if self.distill.tokens else None  # type: ignore[union-attr, index]
                tokens = one.encode(one.embed(pixels)) if one is not None else None
                answers = (one.classify(tokens) if one is not None else self.teacher(pixels)).float()
            loss = torch.lerp(loss, self.distill.imitation(taught.float(), answers), self.distill.weight)
            if tokens is not None:
                loss = loss + self.distill.tokens * self.model.gap(tokens)  # type: ignore[operator]
        extra = getattr(self.model, "auxiliary_loss", None)
        answer = logits if taught is logits else (logits + taught) / 2
        return (loss if extra is None else loss + extra), answer.detach()

    def after_step(self, step: int, steps: int) -> None:
        """Do what follows the optimiser's update of ``step`` (0-based) of ``steps``."""


class Reconstruct(Objective):
    """Plain autoencoding: the mean squared error between a picture and the model's picture of it."""

    def __call__(self, forward: Callable[[Any], Any], pixels: Any, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        return F.mse_loss(forward(pixels).float(), pixels), None


class Mask(Objective):
    """Masked autoencoding: the mean squared error on the patches that the encoder did not see (``models/mae.py``)."""

    def __call__(self, forward: Callable[[Any], Any], pixels: Any, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        predicted, hidden = forward(pixels)
        return self.model.loss(predicted.float(), hidden, pixels), None  # type: ignore[operator]


class SelfDistill(Objective):
    """Self-distillation without labels, DINO: small crops must say what a moving average says of large ones.

    Caron et al. 2021 (arXiv:2104.14294, algorithm 1); the networks are in ``models/dino.py``. Each view of an
    image has draws of its own, a function of (seed, epoch) as all draws are.
    """

    def views(self, images: Tensor, draws: EpochDraws, places: slice) -> list[Tensor]:
        """Return two large views of each image, then the small ones."""
        crops = self.model.crops(self.switches.at(draws.epoch, self.recipe.epochs))  # type: ignore[operator]
        normalize = self.recipe.normalize
        return [augment(images, draws.rows(places, v), how, normalize, side) for v, (how, side) in enumerate(crops)]

    def __call__(self, forward: Callable[[Any], Any], pixels: Any, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        said, heard = forward(pixels)
        loss, self.mean = self.model.loss(said.float(), heard.float())  # type: ignore[operator]
        return loss, None

    def after_step(self, step: int, steps: int) -> None:
        """Move the teacher and its centre."""
        self.model.follow(self.mean, step / max(1, steps))  # type: ignore[operator]


OBJECTIVES: dict[str, type[Objective]] = {
    "classify": Objective,
    "autoencode": Reconstruct,
    "mae": Mask,
    "dino": SelfDistill,
}
