"""DINO, self-distillation with no labels: Caron et al. (2021), arXiv:2104.14294, around the modern ViT's encoder.

Letters in shapes: B images of a batch, C channels, S side of an image, s side of a small crop, V small crops of
an image, D width, K prototypes.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..augment import Augment
from .vit import ViT
from .weighted import precise


class Projector(nn.Module):
    """Compare a summary (B, D) with K prototypes by the cosine, after three layers: (B, K) in [-1, 1] (section 3.1).

    ``center`` (K,) is the running mean of the teacher's answers.
    """

    center: Tensor

    def __init__(self, d_model: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d_model, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        self.register_buffer("center", torch.zeros(prototypes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        with precise(x.device):  # a temperature of 0.04 would make bfloat16's error 25 times as large
            return F.linear(F.normalize(x.float(), dim=-1), F.normalize(self.prototypes, dim=-1))


class DINO(ViT):
    """Student and teacher: views -> what the student says of all and the teacher of the large ones, cosines (., K).

    The student's encoder has :class:`ViT`'s names; the teacher, a moving average of student and projector, and the
    centre are part of the state, so checkpoints hold them. Takes all of ViT's arguments, too.

    Args:
        prototypes: K; hidden, bottleneck: widths in the projector.
        small_crops: V; small_side: s, which the patch size divides; small_area: largest share of the picture that a
            small crop shows, and the smallest that a large crop does.
        temperature, teacher_temperature: divide the cosines before the softmax; the teacher's is the sharper.
        momentum: of the teacher at the start; it rises to 1 along half a cosine.
        center_momentum: of the centre, the running mean of the teacher's answers.
    """

    def __init__(
        self,
        prototypes: int = 2048,
        hidden: int = 512,
        bottleneck: int = 128,
        small_crops: int = 4,
        small_side: int = 16,
        small_area: float = 0.4,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        momentum: float = 0.99,
        center_momentum: float = 0.9,
        img_size: int = 32,
        d_model: int = 256,
        **others: Any,
    ):
        super().__init__(img_size=img_size, d_model=d_model, **others)
        self.head = self.distill_head = None  # type: ignore[assignment]
        self.small_crops, self.small_side, self.small_area = small_crops, small_side, small_area
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.momentum, self.center_momentum = momentum, center_momentum
        student = 2 + small_crops * (small_side / img_size) ** 2
        self.passes = student + 2 / 3  # work of a step in forward and backward passes; the teacher has no backward
        self.projector = Projector(d_model, hidden, bottleneck, prototypes)
        self.initialise()
        nn.init.normal_(self.projector.prototypes)
        self.teacher = copy.deepcopy(self).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "DINO":
        """Set the student's mode; the teacher's answers are never noisy."""
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.eval()
        return self

    def crops(self, switches: Augment) -> list[tuple[Augment, int | None]]:
        """Return the augmentation and the side of each view: two large ones, then the small."""
        large = replace(switches, resized_crop=(self.small_area, 1.0, 0.75, 4 / 3))
        small = replace(switches, resized_crop=(0.05, self.small_area, 0.75, 4 / 3))
        return [(large, None)] * 2 + [(small, self.small_side)] * self.small_crops

    def say(self, images: Tensor) -> Tensor:
        """Return the cosines of images (B, C, S, S) with the prototypes, (B, K)."""
        return self.projector(self.pool(self.encode(self.embed(images))))

    def forward(self, views: Tensor | Sequence[Tensor]) -> Any:
        """Return ((2 + V) B, K) of the student and (2B, K) of the teacher; of plain images what the student says."""
        if isinstance(views, Tensor):
            return self.say(views)
        large, small = torch.cat(list(views[:2])), list(views[2:])
        with torch.no_grad():
            heard = self.teacher.say(large)
        said = [self.say(large), *([self.say(torch.cat(small))] if small else [])]
        return torch.cat(said), heard

    def loss(self, said: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy over all pairs of a teacher's and another view, and the teacher's mean (K,)."""
        student = (said / self.temperature).log_softmax(-1).unflatten(0, (2 + self.small_crops, -1))
        teacher = ((heard - self.projector.center) / self.teacher_temperature).softmax(-1).unflatten(0, (2, -1))
        pairs = [(t, s) for t in range(2) for s in range(len(student)) if s != t]
        crosses = [-(teacher[t] * student[s]).sum(-1).mean() for t, s in pairs]
        return torch.stack(crosses).mean(), heard.mean(0)

    def momentum_at(self, progress: float) -> float:
        """Return the teacher's momentum at this part of the run, in [0, 1]."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def follow(self, mean: Tensor, progress: float) -> None:
        """Move teacher and centre after an update; ``mean`` (K,) is that of the teacher's last answers."""
        mine, its = self.state_dict(), self.teacher.state_dict()
        moving = [name for name, tensor in its.items() if tensor.is_floating_point()]
        weight = 1 - self.momentum_at(progress)
        torch._foreach_lerp_([its[name] for name in moving], [mine[name] for name in moving], weight)
        self.projector.center.lerp_(mean, 1 - self.center_momentum)
