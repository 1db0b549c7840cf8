"""A recipe: everything that decides what a training run computes, and nothing else.

The canonical form of a recipe, with the fields at their default left out, is part of a run's
key. A default therefore never changes and a new field defaults to the behaviour before it:
old records stay valid when a switch is added.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin

from vitlib.augment import Augment
from vitlib.errors import UserError, nearest
from vitlib.losses import build_loss, loss_defaults
from vitlib.models import check_arguments, model_defaults
from vitlib.objectives import OBJECTIVES, Distill
from vitlib.posthoc import PostHoc

NUMERICS = 2
"""Raised by hand whenever the same recipe and seed no longer give the same run (golden tests tell)."""

Protocol = Literal["study", "refit", "original"]


@dataclass(frozen=True)
class Recipe:
    """One training run's declaration.

    Fields
        name: what the run is called in commands and records; not part of the key.
        model, model_args: passed to :func:`vitlib.create_model`.
        objective: ``classify``; pre-training without labels by ``autoencode`` (plain reconstruction by the original's
            autoencoder), ``mae`` or ``dino`` (each by the model of that name).
        protocol: ``study`` trains on 90 % of the training images, draws validation curves and reads
            the test set once at the end; ``refit`` trains on all and reads the test set once;
            ``original`` trains on all and monitors the test accuracy every epoch, as the original did
            (nothing is chosen by it).
        epochs: passes over the training images, each without the rest that fills no batch, drawn anew every time;
            ``batch_size`` is cut to the number of images.
        optimizer: ``adamw``, ``adam`` (L2 inside the gradient, as ``torch.optim.Adam``) or ``muon``
            (:class:`vitlib.muon.Muon`).
        lr, weight_decay, schedule, warmup_epochs: the learning rate is a pure function of the step.
        clip_norm: largest gradient norm; 0 switches clipping off.
        ema: decay of the exponential moving average of the weights; 0 switches it off.
        loss, loss_args: passed to :func:`vitlib.losses.build_loss`.
        augment: the switches of :class:`vitlib.augment.Augment` that are on.
        normalize: ``half`` maps pixels to [-1, 1]; ``none`` leaves them in [0, 1].
        init_from: a recipe trained first with the same seed; its encoder's weights start this run.
        encoder_lr_scale: learning rate of the encoder relative to the head's; 0 freezes its parameters (the running
            statistics of a BatchNorm go on).
        transfer: what ``init_from`` hands over: its ``encoder``, or ``all`` of its weights, cut to this
            model's sizes by importance where they are smaller (:mod:`vitlib.models.transfer`).
        teacher: a recipe trained first with the same seed, whose answers this run imitates.
        distill: how, see :class:`vitlib.objectives.Distill`.
        sampling: ``all`` shows an image at most once an epoch; ``balanced`` and ``sqrt`` draw as many images with
            replacement, each class equally often or in proportion to the root of its size.
        defer: fraction of the epochs trained before class weights are switched on (Cao et al. 2019, section 3.3);
            whole epochs, and at least the last one is trained with them.
        posthoc: a correction of the classifier taken over (:class:`vitlib.posthoc.PostHoc`), made before the first
            step; with ``transfer="all"`` and no epochs it is all that this run does.
        on_nonfinite: ``stop`` records the run as failed at the step found; ``continue`` goes on.
    """

    name: str = field(default="unnamed", compare=False)
    model: str = "vit"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    objective: Literal["classify", "autoencode", "mae", "dino"] = "classify"
    protocol: Protocol = "study"
    epochs: int = 100
    batch_size: int = 256
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 5.0
    clip_norm: float = 1.0
    ema: float = 0.0
    loss: str = "cross_entropy"
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] = field(default_factory=dict)
    normalize: Literal["half", "none"] = "half"
    init_from: "Recipe | None" = None
    encoder_lr_scale: float = 1.0
    transfer: Literal["encoder", "all"] = "encoder"
    teacher: "Recipe | None" = None
    distill: Mapping[str, Any] = field(default_factory=dict)
    sampling: Literal["all", "balanced", "sqrt"] = "all"
    defer: float = 0.0
    posthoc: Mapping[str, Any] = field(default_factory=dict)
    on_nonfinite: Literal["stop", "continue"] = "stop"

    def __post_init__(self) -> None:
        try:
            self._check()
        except (TypeError, ValueError) as error:
            raise UserError(f"配方 {self.name} 有一个设定的类型不对，请对照文档改正：{error}") from error

    def _check(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):  # it becomes the name of a file
            raise UserError(f"配方的名字 {self.name!r} 只能有文字、数字、“_”、“.”与“-”，不能有空格与别的符号。")
        for spec in fields(self):
            choices = get_args(spec.type) if get_origin(spec.type) is Literal else ()
            if choices and getattr(self, spec.name) not in choices:
                raise UserError(
                    f"配方 {self.name} 的 {spec.name}={getattr(self, spec.name)!r} 不可用，可选：{'、'.join(choices)}。"
                )
        for name, low in (("epochs", 0), ("batch_size", 1)):
            if type(getattr(self, name)) is not int or getattr(self, name) < low:
                raise UserError(f"配方 {self.name} 的 {name}={getattr(self, name)!r} 须为不小于 {low} 的整数。")
        for name in ("lr", "weight_decay", "clip_norm", "warmup_epochs", "encoder_lr_scale"):
            if not getattr(self, name) >= 0:
                raise UserError(f"配方 {self.name} 的 {name}={getattr(self, name)!r} 不能小于 0。")
        for name in ("ema", "defer"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"配方 {self.name} 的 {name}={getattr(self, name)!r} 应在 [0, 1) 内。")
        self._check_objective()

    def _check_objective(self) -> None:
        """Refuse a model, a teacher or a way to imitate it that do not go together."""
        # each refuses what it does not know by name: better now than after an hour of the sweep
        check_arguments(self.model, self.model_args)
        build_loss(self.loss, (1,), **self.loss_args)
        if self.loss == "ldam" and (self.augment.get("mixup") or self.augment.get("cutmix")):
            raise UserError(f"配方 {self.name}：ldam 的间隔随类别而定，不接受混合的标签；请去掉 mixup 与 cutmix。")
        if self.posthoc:
            PostHoc.given(self.posthoc)
            if self.transfer != "all" or self.model_args.get("distill_token"):
                raise UserError(
                    f"配方 {self.name}：posthoc 修正的是接过来的唯一一个分类头，须有 transfer='all'，不能有蒸馏词元。"
                )
        Augment(**self.augment)
        if self.objective != self.model and (self.model in OBJECTIVES or self.objective in ("mae", "dino")):
            raise UserError(
                f"配方 {self.name}：模型 {self.model} 与目标 {self.objective} 不配；mae 与 dino 的模型和目标须同名。"
            )
        distill, own = Distill(**self.distill), {k: v for k, v in self.model_args.items() if k != "keep_ratio"}
        if self.distill and self.teacher is None:
            raise UserError(f"配方 {self.name} 写了蒸馏的设定 distill，却没有教师；请给出 teacher。")
        token = bool(self.model_args.get("distill_token"))
        if (self.objective == "classify" and (distill.kind == "token") != token) or (token and self.model != "vit"):
            raise UserError(
                f"配方 {self.name}：distill 的 kind='token' 与模型 vit 的 distill_token=True 须同时给出，或都不给。"
            )
        pair = (self.model, own, distill.seeds, self.teacher and (self.teacher.model, dict(self.teacher.model_args)))
        if distill.tokens and pair != ("dynamic_vit", own, 1, ("vit", own)):
            raise UserError(
                f"配方 {self.name}：distill 的 tokens 要求模型是 dynamic_vit，教师是单独一个除 keep_ratio 外结构相同的 vit。"
            )
        for start in self.starts().values():
            if self.protocol == "study" != start.protocol:
                raise UserError(
                    f"配方 {self.name} 要看验证集，而先训练的 {start.name} 用验证集里的图像训练；"
                    "请让它也用 protocol='study'。"
                )
        known = self.teacher
        if known and (known.normalize != self.normalize or {known.objective, self.objective} != {"classify"}):
            raise UserError(f"配方 {self.name} 与它的教师 {known.name} 须都是分类模型，且 normalize 相同。")

    def but(self, **changes: Any) -> "Recipe":
        """Return a copy with some fields changed; mappings (``model_args`` and the like) are merged.

        A merged entry set to None is taken out. Raises UserError for a field that does not exist.
        """
        known = [spec.name for spec in fields(self)]
        for name, value in changes.items():
            if name not in known:
                raise UserError(f"配方没有叫 {name} 的字段{nearest(name, known)}可用的字段：{'、'.join(known)}。")
            if name in ("model_args", "augment", "loss_args", "distill", "posthoc"):
                merged = {**getattr(self, name), **value}
                changes[name] = {key: item for key, item in merged.items() if item is not None}
        return replace(self, **changes)

    def starts(self) -> "dict[str, Recipe]":
        """Return the recipes that are trained before this one, by the field that names them."""
        before = {"init_from": self.init_from, "teacher": self.teacher}
        return {role: recipe for role, recipe in before.items() if recipe is not None}

    def before(self, seed: int) -> "list[tuple[str, Recipe, int]]":
        """Return the runs that are trained before this one of ``seed``: role, recipe, seed; teachers may be several."""
        runs = {"teacher": Distill(**self.distill).seeds}
        return [(role, start, seed + i) for role, start in self.starts().items() for i in range(runs.get(role, 1))]

    def spec(self) -> dict[str, Any]:
        """Return the canonical form: JSON-able, defaults left out, without the name."""
        out: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "name" or value == _default(item):
                continue
            if item.name == "model_args":
                value = _given(value, model_defaults(self.model))
            elif item.name == "loss_args":
                value = _given(value, loss_defaults(self.loss))
            elif item.name == "augment":
                value = Augment(**value).switches()
            elif item.name == "posthoc":
                value = {"kind": value["kind"], "tau": float(value.get("tau", PostHoc.tau))}
            elif item.name == "distill":
                value = Distill(**value).given()
            elif isinstance(value, Recipe):
                value = value.spec()
            elif isinstance(item.default, float):
                value = float(value)
            if value != {} or isinstance(getattr(self, item.name), Recipe):  # {}: all its fields at default
                out[item.name] = _plain(value)
        return out

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], name: str) -> "Recipe":
        """Return the recipe that a record's canonical form describes; raises UserError for an unknown field."""
        spec = dict(spec)
        for role, suffix in (("init_from", "pretrain"), ("teacher", "teacher")):
            if role in spec:
                spec[role] = cls.from_spec(spec[role], f"{name}-{suffix}")
        return cls().but(name=name, **spec)

    def key(self, seed: int, fingerprint: str, numerics: int = NUMERICS) -> str:
        """Return the 16 hex digits that name one run of this recipe on one data set."""
        what = {"recipe": self.spec(), "seed": seed, "data": fingerprint, "numerics": numerics}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _default(item: Any) -> Any:
    return item.default if item.default is not MISSING else item.default_factory()


def _given(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that differ from their default; 1 and 1.0 are one number."""
    whole = {name for name, default in defaults.items() if isinstance(default, int)}  # bool is one, too
    return {
        name: float(value) if isinstance(value, int) and name not in whole else value
        for name, value in arguments.items()
        if value != defaults[name]
    }


def _plain(value: Any) -> Any:
    """Make tuples lists and mappings sorted, as they will be after a trip through JSON."""
    return json.loads(json.dumps(value, sort_keys=True))
