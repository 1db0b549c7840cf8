"""The recipes of section 2.2: the original's four remedies in all combinations, its claims, and what it lacked.

A combination is a frozenset of ``PLAYERS``; within a family (the original model, the modern ViT) the 16 differ
in nothing but the remedies, and the pre-training is one run a seed, shared by the eight that use it.
"""

from collections.abc import Callable
from itertools import combinations
from typing import Any

from vitlib.recipe import Recipe
from vitlib.recipes import IMPROVED, ORIGINAL_AUGMENT, PRETRAIN, VIT

PLAYERS = {"P": "预训练", "A": "数据增强", "W": "类别加权", "O": "难例挖掘"}
SUBSETS = [frozenset(chosen) for size in range(5) for chosen in combinations(PLAYERS, size)]
EPOCHS = 50  # of a combination, and of its pre-training

# The original model: optimiser and pixel range are the improved recipe's throughout, so that only the four change.
OLD_PRETRAIN = PRETRAIN.but(name="original-pretrain-50", epochs=EPOCHS)
OLD_PLAIN = IMPROVED.but(
    name="original-none", epochs=EPOCHS, augment={"flip": None, "resized_crop": None},
    loss_args={"weighting": None, "mining": None}, init_from=None, encoder_lr_scale=1.0,
)  # fmt: skip
# The modern ViT with the corrected remedies: masked pre-training, the crop that the original's text names.
NEW_PRETRAIN = Recipe(
    name="vit-pretrain-50", model="mae", objective="mae", epochs=EPOCHS, batch_size=128,
    augment={"flip": True, "crop": 4},
)  # fmt: skip
NEW_PLAIN = VIT.but(name="vit-none", epochs=EPOCHS, augment={"flip": None, "crop": None})

REMEDIES: dict[str, tuple[Recipe, dict[str, dict[str, Any]]]] = {
    "original": (OLD_PLAIN, {
        "P": {"init_from": OLD_PRETRAIN, "encoder_lr_scale": 0.01},
        "A": {"augment": ORIGINAL_AUGMENT},
        "W": {"loss_args": {"weighting": "original"}},
        "O": {"loss_args": {"mining": "original"}},
    }),
    "vit": (NEW_PLAIN, {
        "P": {"init_from": NEW_PRETRAIN, "encoder_lr_scale": 0.01},
        "A": {"augment": VIT.augment},
        "W": {"loss_args": {"weighting": "balanced"}},
        "O": {"loss_args": {"mining": "hard"}},
    }),
}  # fmt: skip


def combination(family: str, chosen: frozenset[str]) -> Recipe:
    """Return the recipe of a family (``original`` or ``vit``) with the chosen remedies on."""
    recipe, switches = REMEDIES[family]
    for player in PLAYERS:
        if player in chosen:
            recipe = recipe.but(**switches[player])
    return recipe.but(name=f"{family}-{''.join(p for p in PLAYERS if p in chosen).lower() or 'none'}")


def told(chosen: frozenset[str]) -> str:
    """Return a combination's name for readers."""
    return "＋".join(name for player, name in PLAYERS.items() if player in chosen) or "无对策"


ALL = frozenset(PLAYERS)
OLD_ALL, NEW_ALL = combination("original", ALL), combination("vit", ALL)
BASE = combination("vit", frozenset("A"))  # what the remedies below are compared with


def _longer(family: str) -> Recipe:
    """The family's three supervised remedies for as many epochs as pre-training and fine-tuning take together."""
    return combination(family, ALL - {"P"}).but(name=f"{family}-awo-long", epochs=2 * EPOCHS)


STRONG = {"resized_crop": (0.3, 1.0, 0.75, 4 / 3), "erase": 0.25}

# What the claims about pre-training and augmentation rest on, beside the combinations.
CONTROLS = {
    "原系统：不预训练，监督训练的轮数补足": _longer("original"),
    "原系统：随机编码器，学习率之比 1/100": OLD_ALL.but(name="original-pawo-random", init_from=None),
    "原系统：编码器学习率之比 1": OLD_ALL.but(name="original-rate-1", encoder_lr_scale=1.0),
    "原系统：编码器学习率之比 1/10": OLD_ALL.but(name="original-rate-10", encoder_lr_scale=0.1),
    "原系统：编码器冻结": OLD_ALL.but(name="original-frozen", encoder_lr_scale=0.0),
    "原系统：增强更强": OLD_ALL.but(name="original-strong", augment=STRONG),
    "原系统：加 ColorJitter": OLD_ALL.but(name="original-jitter", augment={"jitter": 0.4}),
    "现代 ViT：不预训练，监督训练的轮数补足": _longer("vit"),
    "现代 ViT：随机编码器，学习率之比 1/100": NEW_ALL.but(name="vit-pawo-random", init_from=None),
    "现代 ViT：四项全用，编码器学习率之比 1": NEW_ALL.but(name="vit-pawo-rate-1", encoder_lr_scale=1.0),
    "现代 ViT：增强更强": BASE.but(name="vit-a-strong", augment=STRONG),
    "现代 ViT：增强最强": BASE.but(name="vit-a-strongest", augment=STRONG | {"trivial": True}),
}


def _corrected(kind: str, tau: float) -> Callable[[Recipe], Recipe]:
    return lambda base: Recipe(
        model_args=base.model_args, init_from=base, transfer="all", epochs=0, posthoc={"kind": kind, "tau": tau}
    )


NO_SMOOTHING = {"label_smoothing": None}
# What the original lacked: how to change a base recipe, with the name of the recipe made so. Deferred re-weighting
# starts after 80 % of the epochs, as 160 of 200 in Cao et al. 2019, whose LDAM has cosines for logits.
LACKED: dict[str, tuple[str, Callable[[Recipe], Recipe]]] = {
    "类别加权": ("weighted", lambda base: base.but(loss_args={"weighting": "balanced"})),
    "延迟加权": ("drw", lambda base: base.but(loss_args={"weighting": "balanced"}, defer=0.8)),
    "均衡 softmax": ("balanced-softmax", lambda base: base.but(loss="logit_adjusted")),
    "焦点损失": ("focal", lambda base: base.but(loss="focal", loss_args=NO_SMOOTHING)),
    "类别均衡焦点损失": ("cb-focal", lambda base: base.but(
        loss="focal", loss_args=NO_SMOOTHING | {"weighting": "effective", "beta": 0.9999}
    )),
    "LDAM＋延迟加权": ("ldam-drw", lambda base: base.but(
        loss="ldam", loss_args=NO_SMOOTHING | {"weighting": "balanced"}, defer=0.8, model_args={"cosine_head": True}
    )),
    "均衡重采样": ("balanced-sampling", lambda base: base.but(sampling="balanced")),
    "平方根重采样": ("sqrt-sampling", lambda base: base.but(sampling="sqrt")),
    "Mixup 与 CutMix": ("mixed", lambda base: base.but(augment={"mixup": 0.8, "cutmix": 1.0, "mix_until": 0.9})),
    "分类头重训（cRT）": ("crt", lambda base: base.but(
        init_from=base, encoder_lr_scale=0.0, sampling="balanced", epochs=10, warmup_epochs=1.0
    )),
    "事后 logit 调整": ("posthoc", _corrected("logit_adjustment", 1.0)),
    "τ 归一化（τ = 0.5）": ("tau-half", _corrected("tau_norm", 0.5)),
    "τ 归一化（τ = 1）": ("tau-one", _corrected("tau_norm", 1.0)),
}  # fmt: skip
FREE = ("事后 logit 调整", "τ 归一化（τ = 0.5）", "τ 归一化（τ = 1）")  # train no epoch
MILD_ONLY = ("均衡重采样", "平方根重采样", "Mixup 与 CutMix")  # not repeated on the long tail
FACTORS = (10, 50, 100)


def remedied(label: str, base: Recipe = BASE) -> Recipe:
    """Return ``base`` with one remedy of ``LACKED``; raises KeyError for an unknown label."""
    name, change = LACKED[label]
    return change(base).but(name=f"{base.name}-{name}")


def on_tail(recipe: Recipe, factor: float) -> Recipe:
    """Return the recipe under the name that it has on data cut to this imbalance factor, its beginnings included."""
    return recipe.but(
        name=f"{recipe.name}-if{factor:g}", **{k: on_tail(it, factor) for k, it in recipe.starts().items()}
    )


# Masked pre-training at equal compute: 25 epochs of fine-tuning, and by mask ratio as many epochs of pre-training
# as cost another 25 (``vitlib.models.count``: a pass costs 0.84, 0.58, 0.33 and 0.18 of the classifier's).
MASKED = {0.25: 30, 0.5: 43, 0.75: 75, 0.9: 137}


def masked(ratio: float) -> Recipe:
    """Return BASE, fine-tuned at the full rate from an autoencoder that saw 1 - ``ratio`` of the patches."""
    name = f"vit-mae-{100 * ratio:g}"
    before = NEW_PRETRAIN.but(name=f"{name}-pretrain", model_args={"mask_ratio": ratio}, epochs=MASKED[ratio])
    return BASE.but(name=name, epochs=EPOCHS // 2, init_from=before)
