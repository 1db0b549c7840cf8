"""Classification losses, each one a per-sample loss x a class weighting x a mining of hard samples.

``build_loss`` joins the three. Logits are (B, K) in any floating dtype; the arithmetic is done in float32 at
least, so half-precision logits are safe. Targets are class numbers, int64 (B,), or probabilities, (B, K).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlib.errors import UserError, nearest


class CrossEntropy(nn.Module):
    """-sum_k t_k log p_k, with t smoothed towards uniform (Szegedy et al. 2016, section 7)."""

    def __init__(self, counts: Tensor, label_smoothing: float = 0.0):
        super().__init__()
        _check(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "须在 [0, 1) 之内")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)


class Focal(nn.Module):
    """-sum_k t_k (1 - p_k)^gamma log p_k: the softmax form of Lin et al. 2017, equation 4; gamma 0 is CE."""

    def __init__(self, counts: Tensor, gamma: float = 2.0):
        super().__init__()
        _check(gamma >= 0, "gamma", gamma, "不能为负")
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=1)
        # expm1 keeps 1 - p exact near p = 1; the floor keeps the slope of x^gamma finite when gamma < 1.
        modulation = (-torch.expm1(log_p)).clamp_min(1e-12) ** self.gamma
        probabilities = F.one_hot(target, logits.shape[1]) if target.ndim == 1 else target
        return -(probabilities * modulation * log_p).sum(dim=1)


class LDAM(nn.Module):
    """CE(scale * (z - margin of the true class)), margin_c proportional to n_c^(-1/4).

    Source: Cao et al. 2019, "Learning Imbalanced Datasets with LDAM", equations 10 to 13. The largest margin
    is ``max_margin``. The paper's scale of 30 is meant for logits that are cosines (features and class
    vectors normalised); unbounded logits want scale 1. Defined for class numbers only, not for mixed labels.
    """

    margins: Tensor

    def __init__(self, counts: Tensor, max_margin: float = 0.5, scale: float = 30.0):
        super().__init__()
        _check(max_margin >= 0, "max_margin", max_margin, "不能为负")
        _check(scale > 0, "scale", scale, "须大于 0")
        self.scale = scale
        self.register_buffer("margins", max_margin * (counts / counts.min()) ** -0.25)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if target.ndim != 1:
            raise UserError(
                "LDAM 损失只对整数标签有定义，不能与 Mixup、CutMix 的软标签同用：请关闭它们，或换一种损失。"
            )
        margins = F.one_hot(target, logits.shape[1]) * self.margins.to(logits)
        return F.cross_entropy(self.scale * (logits - margins), target, reduction="none")


class LogitAdjusted(nn.Module):
    """CE(z + tau log prior): Menon et al. 2021, equation 10; tau 1 is Ren et al. 2020, balanced softmax."""

    shift: Tensor

    def __init__(self, counts: Tensor, tau: float = 1.0, label_smoothing: float = 0.0):
        super().__init__()
        _check(tau >= 0, "tau", tau, "不能为负")
        self.cross_entropy = CrossEntropy(counts, label_smoothing)
        self.register_buffer("shift", tau * torch.log(counts / counts.sum()))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.cross_entropy(logits + self.shift.to(logits), target)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "ldam": LDAM,
    "logit_adjusted": LogitAdjusted,
}
WEIGHTINGS = ("none", "original", "balanced", "effective")
MININGS = ("none", "original", "hard")


def class_weights(counts: Tensor, weighting: str, beta: float = 0.999) -> Tensor:
    """Weights (K,) of the classes from their image counts (K,).

    - ``none``: 1.
    - ``original``: N / N_c, normalised to sum 1.
    - ``balanced``: N / (K N_c), so that their mean over the training images is 1.
    - ``effective``: (1 - beta) / (1 - beta^N_c), normalised to sum K (Cui et al. 2019, "Class-Balanced Loss
      Based on Effective Number of Samples", equation 2 and section 4); beta 0 gives 1.
    """
    if weighting == "none":
        return torch.ones_like(counts)
    if weighting == "original":
        return (1 / counts) / (1 / counts).sum()
    if weighting == "balanced":
        return counts.sum() / (len(counts) * counts)
    weights = (1 - beta) / (1 - beta**counts)
    return weights * len(counts) / weights.sum()


class Loss(nn.Module):
    """A per-sample loss, weighted by class, averaged over all or the hardest samples; see ``build_loss``.

    While ``weigh`` is False every class weighs 1: re-weighting may be deferred.
    """

    weights: Tensor
    weigh = True

    def __init__(self, sample_loss: nn.Module, counts: Tensor, weighting: str, beta: float, mining: str, keep: float):
        super().__init__()
        self.sample_loss, self.weighting, self.mining, self.keep = sample_loss, weighting, mining, keep
        self.register_buffer("weights", class_weights(counts, weighting, beta))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.shape[1] != len(self.weights):
            raise UserError(
                f"模型输出 {logits.shape[1]} 类，而损失按 {len(self.weights)} 类构造：请让两者的类别数一致。"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if target.ndim == 2:
            target = target.to(logits)
        losses = self.sample_loss(logits, target)
        class_weight = (self.weights if self.weigh else torch.ones_like(self.weights)).to(logits)
        weights = class_weight[target] if target.ndim == 1 else target @ class_weight
        if self.mining == "original":  # weights decide what is hard; a batch of one keeps nothing: NaN
            return (weights * losses).topk(int(self.keep * len(losses))).values.mean()
        if self.mining == "hard":
            hardest = losses.topk(max(1, int(self.keep * len(losses)))).indices
            losses, weights = losses[hardest], weights[hardest]
        divisor = len(losses) if self.weighting == "original" else weights.sum()
        return (weights * losses).sum() / divisor


def build_loss(
    name: str, class_counts: Sequence[int], *, weighting: str = "none", beta: float = 0.999, mining: str = "none",
    keep: float = 0.5, **args: Any,
) -> Loss:  # fmt: skip
    """The loss ``name`` for classes of ``class_counts`` training images: a module (logits, target) -> scalar.

    ``name`` and its own arguments ``args``: ``cross_entropy`` (label_smoothing), ``focal`` (gamma), ``ldam``
    (max_margin, scale), ``logit_adjusted`` (tau, label_smoothing).

    ``weighting``: see ``class_weights``; ``beta`` belongs to ``effective``. A sample with probabilities for a
    target weighs their mean. The result is the weighted mean, divided by the sum of the weights, except with
    ``original``, which divides by the number of samples as the original report's code does, and is about K
    times smaller.

    ``mining``: ``none`` averages all samples; ``hard`` is online hard example mining (Shrivastava et al.
    2016): only the largest fraction ``keep`` of the unweighted losses, at least one; ``original`` is the
    original report's: the mean of the largest int(keep * B) weighted losses, NaN when that is none (a batch
    of one).

    Raises UserError for an unknown name or argument, a bad value, or a class without images.
    """
    valid = loss_defaults(name)
    for argument in args:
        if argument not in valid:
            raise UserError(
                f"损失“{name}”没有参数“{argument}”{nearest(argument, valid)}可用的参数：{'、'.join(valid)}。"
            )
        _check(isinstance(args[argument], int | float), argument, args[argument], "须为一个数")
    _check(weighting in WEIGHTINGS, "weighting", weighting, f"须为 {'、'.join(WEIGHTINGS)} 之一")
    _check(mining in MININGS, "mining", mining, f"须为 {'、'.join(MININGS)} 之一")
    _check(isinstance(beta, int | float) and 0 <= beta < 1, "beta", beta, "须在 [0, 1) 之内")
    _check(isinstance(keep, int | float) and 0 < keep <= 1, "keep", keep, "须在 (0, 1] 之内")
    if not class_counts or min(class_counts) <= 0:
        raise UserError(f"各类的训练图像数须为正数，而给出的是 {list(class_counts)}：请检查训练集是否缺少某一类。")
    counts = torch.tensor(class_counts, dtype=torch.float64)  # beta^N is lost in single precision
    return Loss(LOSSES[name](counts, **args), counts, weighting, beta, mining, keep).float()


def loss_defaults(name: str) -> dict[str, Any]:
    """Every argument of ``build_loss(name)`` with its default; the keys of stored runs leave defaults out.

    Raises UserError for an unknown name.
    """
    if name not in LOSSES:
        raise UserError(f"没有名为“{name}”的损失{nearest(name, LOSSES)}可用的损失：{'、'.join(LOSSES)}。")
    parameters = [*inspect.signature(LOSSES[name]).parameters.values()]
    parameters += inspect.signature(build_loss).parameters.values()
    return {item.name: item.default for item in parameters if item.default is not inspect.Parameter.empty}


def _check(valid: bool, name: str, value: object, rule: str) -> None:
    if not valid:
        raise UserError(f"损失的参数 {name}={value!r} 无效：{rule}。")
