"""The named recipes: the original's, exactly, and ours.

Comments state the source and the reason; accuracies are in the records, never here.
"""

from typing import Any

from vitlib.errors import UserError, nearest
from vitlib.recipe import Recipe

BRIEF, HOURS, DAYS, FULL = range(4)  # what a run takes: a processor's minutes, hours or days, or a GPU

# The original report: Adam at a constant 5e-4, batches of 512, all training images, the test accuracy
# watched every epoch. "Vanilla" feeds pixels in [0, 1] to plain cross-entropy for 500 epochs.
VANILLA = Recipe(
    name="original-vanilla", model="original", protocol="original", epochs=500, batch_size=512, optimizer="adam",
    lr=5e-4, weight_decay=0.0, schedule="constant", clip_norm=0.0, normalize="none",
)  # fmt: skip

ORIGINAL_AUGMENT = {"flip": True, "resized_crop": (0.8, 1.0, 0.9, 1.1)}

# Its pre-training: plain autoencoding of the augmented training images, 500 epochs, no weight decay.
PRETRAIN = VANILLA.but(name="original-pretrain", objective="autoencode", normalize="half", augment=ORIGINAL_AUGMENT)

# Its "improved" run: the four remedies together, and one epoch more than vanilla.
IMPROVED = VANILLA.but(
    name="original-improved", epochs=501, weight_decay=1e-4, normalize="half", augment=ORIGINAL_AUGMENT,
    loss_args={"weighting": "original", "mining": "original"}, init_from=PRETRAIN, encoder_lr_scale=0.01,
)  # fmt: skip


def original_ablation(name: str, pretrain_dropout: float = 0.1, **model_args: Any) -> Recipe:
    """Return one of the original's ablations: the improved recipe with another model.

    Its patch-size runs pre-trained with dropout 0, its other runs with 0.1.
    """
    pretrain = PRETRAIN.but(name=f"{name}-pretrain", model_args={**model_args, "dropout": pretrain_dropout})
    return IMPROVED.but(name=name, model_args=model_args, init_from=pretrain)


PATCH8 = original_ablation("original-patch8", 0.0, patch_size=8)
PATCH16 = original_ablation("original-patch16", 0.0, patch_size=16)
# What the original's loop did at the NaN: it went on, and drew a flat line.
PATCH16_ON = PATCH16.but(name="original-patch16-continued", on_nonfinite="continue")
# The same with proper attention dropout and nothing else changed.
PATCH16_FIXED = PATCH16.but(name="original-patch16-fixed", model_args={"attention_noise": "dropout"})

# The modern ViT at the original's shape: what the same width, depth and patches reach without its defects.
VIT = Recipe(
    name="vit", model_args={"drop_path": 0.1}, epochs=100, batch_size=128, lr=1e-3, weight_decay=0.05,
    loss_args={"label_smoothing": 0.1}, augment={"flip": True, "crop": 4},
)  # fmt: skip

# A CNN that learns from the same images and then teaches: WRN-16-4. No label smoothing, which would hide from a
# pupil which wrong classes are near (Müller et al. 2019, arXiv:1906.02629); balanced as its pupil is.
TEACHER = Recipe(
    name="teacher", model="cnn", protocol="refit", epochs=100, batch_size=128, lr=2e-3, weight_decay=0.05,
    loss="logit_adjusted", augment={"flip": True, "crop": 4, "cutmix": 1.0, "mix_until": 0.9},
)  # fmt: skip

# Pre-training without labels at VIT's total compute: half of it by masks, at a third of the cost an epoch (He et al.
# 2022), or by crops, at three times the cost (Caron et al. 2021); half of it fine-tuning.
MAE_PRETRAIN = Recipe(
    name="vit-mae-pretrain", model="mae", objective="mae", epochs=150, batch_size=128, augment={"flip": True, "crop": 4},
)  # fmt: skip
VIT_MAE = VIT.but(name="vit-mae", epochs=50, init_from=MAE_PRETRAIN)
DINO_PRETRAIN = Recipe(
    name="vit-dino-pretrain", model="dino", objective="dino", model_args={"small_crops": 2}, epochs=16, batch_size=128,
    lr=5e-4, warmup_epochs=2.0, augment={"flip": True, "jitter": 0.4},
)  # fmt: skip
VIT_DINO = VIT.but(name="vit-dino", epochs=50, init_from=DINO_PRETRAIN)

# From VIT to BEST, one ingredient a step: its name for readers and what it changes. Sources: Dosovitskiy et al. 2021
# for the stem, Hassani et al. 2021 for the pooling, Zhang et al. 2018 and Yun et al. 2019 for mixing, Müller & Hutter
# 2021 and Zhong et al. 2020 for the policy and the erasing, Ren et al. 2020 for the balanced softmax (without it a
# model expects each class in the balanced test set as often as in training), Jordan et al. 2024 for the optimiser;
# imitating a CNN on the same mixed pictures: Beyer et al. 2022, arXiv:2106.05237.
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "stem": ("混合茎部", {"model_args": {"stem": "hybrid"}}),
    "pool": ("序列池化", {"model_args": {"pool": "seq"}}),
    "deep": ("第 7 个块", {"model_args": {"num_layers": 7}}),
    "mix": ("Mixup 与 CutMix", {"augment": {"mixup": 0.8, "cutmix": 1.0, "mix_until": 0.9}}),
    "policy": ("TrivialAugment 与随机擦除", {"augment": {"trivial": True, "erase": 0.25}}),
    "ema": ("权重的指数滑动平均", {"ema": 0.999}),
    "balance": ("均衡 softmax", {"loss": "logit_adjusted"}),
    "muon": ("Muon 优化器", {"optimizer": "muon", "lr": 6e-3}),
    "teacher": ("CNN 教师", {"teacher": TEACHER.but(name="teacher-study", protocol="study")}),
    "long": ("250 轮，用全部训练图像", {"epochs": 250, "warmup_epochs": 10.0}),
}  # fmt: skip


def climb(
    start: tuple[str, Recipe], family: str, steps: dict[str, tuple[str, dict[str, Any]]]
) -> list[tuple[str, Recipe]]:
    """Return ``start`` and the steps from it, each with all those before it: label and recipe."""
    rungs = [start]
    for name, (label, changes) in steps.items():
        rungs.append((f"+ {label}", rungs[-1][1].but(name=f"{family}-{name}", **changes)))
    return rungs


# The strongest that can be argued for before a GPU has measured it, within 6 M parameters.
*RUNGS, (_LAST, _LONG) = climb(("现代 ViT", VIT), "ladder", STEPS)
BEST = _LONG.but(name="best", protocol="refit", teacher=TEACHER)
LADDER = [*RUNGS, (_LAST, BEST)]

# What it leaves out, each by itself on VIT.
OTHERS = {
    "现代 ViT，掩码预训练": VIT_MAE,
    "现代 ViT，DINO 预训练": VIT_DINO,
    "现代 ViT，移位图像块": VIT.but(name="vit-shifted", model_args={"stem": "shifted"}),
    "现代 ViT，局部注意力": VIT.but(name="vit-local", model_args={"local_attention": True}),
}


def without(name: str) -> Recipe:
    """Return BEST without one of STEPS; all others stay as they are. Raises UserError for an unknown name."""
    if name not in STEPS:
        raise UserError(f"最佳配方没有叫 {name} 的成分；可用的：{'、'.join(STEPS)}。")
    back = {
        field: {key: getattr(VIT, field).get(key) for key in value} if isinstance(value, dict) else getattr(VIT, field)
        for field, value in STEPS[name][1].items()
    }
    # nor may balance be had from a balanced teacher
    back |= {"teacher": TEACHER.but(name="teacher-plain", loss=VIT.loss)} if name == "balance" else {}
    return BEST.but(name=f"best-without-{name}", **back)


# What two processor cores can do in ten minutes. So short a training favours few blocks, small images at first, a
# convolutional network for a stem and an optimiser that needs few steps, each chosen on the validation split
# (benchmarks/RECIPE.md).
CPU = Recipe(
    name="cpu",
    model_args={
        "stem": "hybrid", "pool": "seq", "d_model": 128, "num_heads": 4, "num_layers": 2, "ffn_hidden_channels": 256,
    },
    protocol="refit", epochs=9, batch_size=128, optimizer="muon", lr=1e-2, weight_decay=0.05, warmup_epochs=0.6,
    loss="logit_adjusted", loss_args={"label_smoothing": 0.1}, augment={"flip": True, "crop": 4, "shrink": 24},
)  # fmt: skip
# The same with more width and in less of a hurry.
CPU_LONG = CPU.but(
    name="cpu-long", model_args={"d_model": 192, "ffn_hidden_channels": 384}, epochs=16, augment={"erase": 0.25},
)  # fmt: skip
# The same again: after 16 epochs it still misses a tenth of what it trains on, so that time is what it lacks.
CPU_LONGEST = CPU_LONG.but(name="cpu-longest", epochs=40)
# From 90 % of its training images to 96 % it gains one point on others: what it lacks now is variety.
CPU_VARIED = CPU_LONGEST.but(name="cpu-varied", augment={"trivial": True})
# More of a convolutional network before fewer tokens, and blocks that learn faster under BatchNorm: what short trials
# on the validation split liked best, and long trainings did not (benchmarks/RECIPE.md).
CPU_POOLED = CPU_VARIED.but(
    name="cpu-pooled", epochs=30,
    model_args={"stem": "pooled", "patch_size": 8, "d_model": 256, "ffn_hidden_channels": 512, "norm": "batch"},
)  # fmt: skip
# The same network in half the time, with mild augmentation and weights that decay fast enough for the steps to stay
# long beside them: 92 % of its training images instead of 78, and no more of others (benchmarks/RECIPE.md).
CPU_MILD = CPU_POOLED.but(name="cpu-mild", epochs=16, weight_decay=0.2, augment={"trivial": None, "erase": 0.25})
# A wider stem that begins near the identity, whole images from the first epoch, and blocks that begin as almost nothing:
# in two epochs about what cpu-pooled reaches in four (benchmarks/RECIPE.md).
CPU_WIDE = CPU_MILD.but(
    name="cpu-wide", epochs=8, warmup_epochs=0.4, loss_args={"label_smoothing": 0.2},
    model_args={"stem": "wide", "layer_scale": 0.1}, augment={"crop": 2, "erase": None, "shrink": None},
)  # fmt: skip
# The same network once more, from where cpu-wide ended: on pictures varied as cpu-varied's are, which it has not
# learned by heart, and with what it said of them before as half of the aim.
CPU_AGAIN = CPU_WIDE.but(
    name="cpu-again", init_from=CPU_WIDE, transfer="all", teacher=CPU_WIDE, distill={"temperature": 2.0},
    augment={"trivial": True},
)  # fmt: skip
# The network of cpu-wide for those with bfloat16 and an hour of a core: varied pictures, small ones at
# first, until it has settled, and at the end plain ones. Larger batches, because Muon costs the same for each.
CPU_SETTLED = CPU_WIDE.but(
    name="cpu-settled", epochs=30, batch_size=256, lr=1.5e-2, warmup_epochs=1.0,
    augment={"crop": 4, "trivial": True, "erase": 0.25, "shrink": 24, "strong_until": 0.8},
)  # fmt: skip
# The same again with twice the parameters: after 30 epochs cpu-settled still misses a fifth of its varied pictures.
CPU_BROAD = CPU_SETTLED.but(
    name="cpu-broad", model_args={"stem": "broad", "d_model": 320, "num_heads": 5, "ffn_hidden_channels": 640},
)  # fmt: skip
# The way to cpu-broad, from linear patches in four epochs of the whole data, one ingredient at a time as far as there
# is the time. AdamW has the rate it had before Muon, then with batches of 64; unlike Muon's it was never swept
# (benchmarks/RECIPE.md).
CPU_PLAIN = CPU.but(
    name="cpu-plain", model_args={"stem": None, "pool": None}, loss="cross_entropy", optimizer="adamw", lr=1.5e-3, epochs=4,
)  # fmt: skip
CPU_LADDER = [
    *climb(("线性图像块（4 轮）", CPU_PLAIN), "cpu-with", {name: STEPS[name] for name in ("stem", "pool", "balance")}),
    ("+ Muon 优化器", CPU.but(name="cpu-with-muon", epochs=CPU_PLAIN.epochs)), ("轮数增至 9", CPU),
    ("+ 加宽、随机擦除，轮数增至 16", CPU_LONG), ("轮数增至 40", CPU_LONGEST), ("+ TrivialAugment", CPU_VARIED),
    ("换网络（加宽混合的茎部、更少的词元、批归一化），轮数减至 8", CPU_WIDE),
    ("+ TrivialAugment（末尾关闭）、先用小图像，轮数增至 30", CPU_SETTLED), ("+ 更宽的茎部与词元", CPU_BROAD),
]  # fmt: skip
# The child of cpu-long, of a quarter of the weights, which also imitates it.
CPU_LIGHT = CPU_LONG.but(
    name="cpu-light", model_args={"d_model": 80, "ffn_hidden_channels": 160}, teacher=CPU_LONG,
    distill={"temperature": 2.0},
)  # fmt: skip
# The child of cpu-varied, as varied as its teacher and longer than cpu-light: a child that imitates needs patience.
CPU_CHILD = CPU_LIGHT.but(name="cpu-child", teacher=CPU_VARIED, epochs=30, augment={"trivial": True})
# cpu-settled with linear patches instead of its convolutional stem, and blocks for the arithmetic that this saves: what a
# ViT without any convolution makes of the same training.
CPU_VIT = CPU_SETTLED.but(name="cpu-vit", model_args={"stem": None, "patch_size": None, "num_layers": 4})
# What one GPU can do while one holds one's breath: the recipe that `vitlib speedrun` times. A large batch, because
# launches, not arithmetic, limit a small one.
FAST = Recipe(
    name="fast", model_args={"stem": "hybrid", "pool": "seq"},
    protocol="refit", epochs=40, batch_size=512, optimizer="muon", lr=1e-2, weight_decay=0.05, warmup_epochs=4.0,
    loss="logit_adjusted", loss_args={"label_smoothing": 0.1}, augment={"flip": True, "crop": 4},
)  # fmt: skip

RECIPES = {
    recipe.name: recipe for recipe in (
        VANILLA, PRETRAIN, IMPROVED, PATCH8, PATCH16, PATCH16_ON, PATCH16_FIXED, VIT, VIT_MAE, VIT_DINO, TEACHER, BEST,
        *OTHERS.values(), *dict(CPU_LADDER).values(), CPU_POOLED, CPU_MILD, CPU_AGAIN, CPU_LIGHT, CPU_CHILD,
        CPU_VIT, FAST,
    )
}  # fmt: skip


def recipe_named(name: str) -> Recipe:
    """Return a named recipe, a step to BEST or BEST without one; raises UserError with the names there are."""
    from vitlib.light.recipes import METHODS  # which builds on the recipes above

    listed = [*RECIPES.values(), *(recipe for _, recipe, _ in METHODS), *dict(LADDER).values(), *map(without, STEPS)]
    known = {recipe.name: recipe for recipe in listed}
    if name not in known:
        raise UserError(f"没有叫 {name} 的配方{nearest(name, known)}可用的配方：{'、'.join(known)}。")
    return known[name]
