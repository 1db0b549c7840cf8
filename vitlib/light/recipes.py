"""The recipes of 2.4: a trained ViT made lighter and trained on, and the recommended light model, ``light``.

Every fine-tuning starts from all weights of its base and imitates the base's own answers (soft distillation),
so that what a method costs in accuracy is the method's, not the training's; ``TUNED`` is the control.
"""

from typing import Any

from vitlib.recipe import Recipe
from vitlib.recipes import BEST, BRIEF, FULL, HOURS, TEACHER, VIT

SOFT = {"kind": "soft", "weight": 0.5, "temperature": 2.0}


def tuned(name: str, base: Recipe, teacher: Recipe, **changes: Any) -> Recipe:
    """Return a fine-tuning of ``base``: 30 epochs (Rao et al. 2021, section 4) at a fifth of its learning rate."""
    return base.but(
        name=name, epochs=30, lr=base.lr / 5, warmup_epochs=1.0, init_from=base, transfer="all",
        teacher=teacher, distill=SOFT, **changes,
    )  # fmt: skip


def dynamic(ratio: float) -> Recipe:
    """DynamicViT on the modern ViT, whose tokens it imitates too."""
    student = tuned(f"vit-dynamic-{100 * ratio:.0f}", VIT, VIT, model="dynamic_vit", model_args={"keep_ratio": ratio})
    return student.but(distill={"tokens": 0.5})


def adaptive(depth: int) -> Recipe:
    """A-ViT on the modern ViT, its prior centred at block ``depth``."""
    return tuned(f"vit-adaptive-{depth}", VIT, VIT, model="a_vit", model_args={"target_depth": depth})


def merging(r: int) -> Recipe:
    """Token merging on the modern ViT, trained with it."""
    return tuned(f"vit-merging-{r}", VIT, VIT, model="tome", model_args={"merge": r})


# Heads and hidden channels that are left, of 4 heads of width 64 and 512 channels, by percent pruned.
LEFT = {30: (3, 352), 50: (2, 256), 70: (1, 160)}


def pruned(percent: int) -> Recipe:
    """The modern ViT with its most important heads and channels only."""
    heads, hidden = LEFT[percent]
    args = {"num_heads": heads, "head_dim": 64, "ffn_hidden_channels": hidden}
    return tuned(f"vit-pruned-{percent}", VIT, VIT, model_args=args)


TUNED = tuned("vit-tuned", VIT, VIT)

# What the assignment does not count as a method: the same training of a smaller model.
FEWER_BLOCKS = VIT.but(name="vit-2-blocks", model_args={"num_layers": 2})
NARROWER = VIT.but(name="vit-narrow", model_args={"d_model": 128})

# A child of a quarter of the weights, by itself and with the best model as its teacher (Hinton et al. 2015).
CHILD = BEST.but(
    name="child", epochs=150, teacher=None, distill=dict.fromkeys(BEST.distill),
    model_args={
        "patch_size": 4, "d_model": 128, "num_heads": 4, "num_layers": 6, "ffn_hidden_channels": 256, "drop_path": None,
    },
)  # fmt: skip
DISTILLED = CHILD.but(name="child-distilled", teacher=BEST, distill=SOFT)
# The same from its decisions alone, and from the CNN instead of the best model.
HARD = CHILD.but(name="child-hard", teacher=BEST, distill={"kind": "hard"})
BY_CNN = CHILD.but(name="child-by-cnn", teacher=TEACHER, distill=SOFT)
# The same with a token of its own for the teacher's decisions (Touvron et al. 2021, section 4).
TOKEN = CHILD.but(name="child-token", model_args={"distill_token": True}, teacher=BEST, distill={"kind": "token"})

# The chain that is recommended: best -> distilled child -> DynamicViT, taught by best; int8 when it is exported.
LIGHT = tuned("light", DISTILLED, BEST, model="dynamic_vit", model_args={"keep_ratio": 0.7})

# Label for readers, recipe, and what its training takes.
METHODS: list[tuple[str, Recipe, int]] = [
    ("再微调（对照）", TUNED, HOURS),
    ("DynamicViT 0.7", dynamic(0.7), BRIEF),
    ("DynamicViT 0.5", dynamic(0.5), HOURS),
    ("A-ViT 4", adaptive(4), BRIEF),
    ("词元合并（训练）8", merging(8), HOURS),
    ("结构化剪枝 50 %", pruned(50), BRIEF),
    ("结构化剪枝 30 %", pruned(30), HOURS),
    ("结构化剪枝 70 %", pruned(70), HOURS),
    ("只留 2 块", FEWER_BLOCKS, BRIEF),
    ("嵌入维数 128", NARROWER, BRIEF),
    ("小模型", CHILD, HOURS),
    ("小模型（蒸馏）", DISTILLED, BRIEF),
    ("小模型（硬蒸馏）", HARD, HOURS),
    ("小模型（由 CNN 蒸馏）", BY_CNN, FULL),
    ("小模型（蒸馏词元）", TOKEN, HOURS),
    ("推荐的轻量模型", LIGHT, BRIEF),
]
