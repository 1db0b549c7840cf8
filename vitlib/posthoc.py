"""Corrections of a trained classifier's last layer that need no further training.

As a recipe: ``init_from`` a trained run, ``transfer="all"``, ``epochs=0`` and ``posthoc`` as here, so that what
comes out is a record like any other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from vitlib.errors import UserError


@dataclass(frozen=True)
class PostHoc:
    """What to do to the last linear layer, whose row w_c and bias b_c make the logit of class c.

    ``logit_adjustment``: b_c - tau log prior_c (Menon et al. 2021, "Long-Tail Learning via Logit Adjustment",
    equation 9). ``tau_norm``: w_c / |w_c|^tau without bias (Kang et al. 2020, "Decoupling Representation and
    Classifier", equation 4), all rows then scaled alike so that their mean norm, and with it the confidence,
    stays what it was.
    """

    kind: Literal["logit_adjustment", "tau_norm"]
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("logit_adjustment", "tau_norm") or not self.tau >= 0:
            raise UserError(
                f"事后修正 {self.kind!r}（tau={self.tau!r}）不可用：kind 须为 logit_adjustment 或 tau_norm，tau 不能为负。"
            )

    @classmethod
    def given(cls, posthoc: Mapping[str, Any]) -> "PostHoc":
        """Return the correction that a recipe declares; raises UserError for what it does not know."""
        if posthoc.keys() - {"kind", "tau"} or "kind" not in posthoc:
            raise UserError(f"事后修正 {dict(posthoc)} 不可用：要给出 kind，还可以给出 tau，没有别的设定。")
        return cls(**posthoc)

    @torch.no_grad()
    def apply(self, model: nn.Module, class_counts: Sequence[int]) -> None:
        """Change ``model.head`` in place; ``class_counts`` are the images of each class it was trained on.

        Raises UserError for a head without bias.
        """
        last = [layer for layer in model.head.modules() if isinstance(layer, nn.Linear)][-1]  # type: ignore[union-attr, operator]
        if last.bias is None:
            raise UserError("事后修正要改分类头的偏置，而 cosine_head=True 的分类头没有偏置；请换一个基准模型。")
        if self.kind == "logit_adjustment":
            counts = torch.tensor(class_counts, dtype=torch.float64)
            last.bias.sub_((self.tau * torch.log(counts / counts.sum())).to(last.bias))
        else:
            norms = last.weight.norm(dim=1, keepdim=True)
            last.weight /= norms**self.tau
            last.weight *= norms.mean() / last.weight.norm(dim=1).mean()
            last.bias.zero_()
