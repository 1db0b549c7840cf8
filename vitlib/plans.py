"""Which runs each section of the report rests on, and how a profile cuts them to the machine.

A section is a table of entries: a label for the reader, a recipe, and the tier in which a GPU gets to it.
A profile shrinks images, epochs and seeds, and nothing else: the models keep their size.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from vitlib import knobs, recipes, remedies
from vitlib.data import Dataset, load, long_tail
from vitlib.errors import UserError
from vitlib.light import recipes as light
from vitlib.recipe import Recipe
from vitlib.recipes import BRIEF, DAYS, FULL, HOURS

TIERS = {
    1: "最佳配方与原系统",
    2: "它们的第二个种子",
    3: "2.3 消融，前两个种子",
    4: "第一层的第三个种子",
    5: "2.4 轻量化",
    6: "2.2 类别不平衡：对策的组合、对照与其他对策",
    7: "它们的第二个种子",
    8: "它们的第三个种子",
    9: "2.2 长尾数据、掩码预训练、重采样与混合",
    10: "2.1 通向最佳配方的每一步，与没有用上的方法",
    11: "它们的第二个种子，没有用上的方法与第一步的第三个",
    12: "2.1 其余各步与 2.3 的第三个种子",
}


@dataclass(frozen=True)
class Entry:
    """One line of a section's table: reader's label, recipe, tier of its first seed.

    ``later`` gives the tiers of the second seed, the third and so on (the last holds for the rest); without
    it they come with the first. A tier is at most 25 minutes of one H100. ``scope``: the smallest profile that
    trains it, BRIEF (a processor's minutes), HOURS, DAYS or FULL (a GPU).
    ``factor``: the training set is first cut to this imbalance factor; 0 leaves it as it is.
    """

    label: str
    recipe: Recipe
    tier: int
    later: tuple[int, ...] = ()
    scope: int = BRIEF
    factor: float = 0.0

    def tier_of(self, seed: int) -> int:
        """Return the tier in which this seed (0-based) comes."""
        return self.tier if seed == 0 or not self.later else self.later[min(seed, len(self.later)) - 1]


@dataclass(frozen=True)
class Profile:
    """How far a plan is cut down.

    images, test_images: stratified subsets, None for all; epochs: of the ``original`` model and of all others
    (``vit``), empty for the recipe's own;
    seeds: how many; tier: last tier run at full size, later ones are left out; scope: entries beyond it are
    left out, and below FULL a CNN as teacher, which costs more than its pupil.
    """

    name: str
    images: int | None = None
    test_images: int | None = None
    epochs: tuple[tuple[str, int], ...] = ()
    seeds: int = 3
    tier: int = max(TIERS)
    scope: int = FULL

    def takes(self, entry: Entry, seed: int = 0) -> bool:
        """Whether this profile trains this seed (0-based) of an entry."""
        return entry.tier_of(seed) <= self.tier and entry.scope <= self.scope

    def fit(self, recipe: Recipe) -> Recipe:
        """Return the recipe with this profile's epochs, its pre-training included."""
        epochs = dict(self.epochs).get("original" if recipe.model == "original" else "vit")
        if epochs is None:
            return recipe
        if recipe.transfer == "all":  # a fine-tuning is short; one that only corrects trains no epoch here either
            epochs = max(1, epochs // 5) if recipe.epochs else 0
        if self.scope < FULL and recipe.teacher is not None and recipe.teacher.model == "cnn":
            recipe = recipe.but(teacher=None, distill=dict.fromkeys(recipe.distill))
        before = {role: start and self.fit(start) for role, start in recipe.starts().items()}
        return recipe.but(epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs / 5), **before)

    def cut(self, data: Dataset) -> Dataset:
        """Return the data set with this profile's numbers of images."""
        return data.subset(self.images, self.test_images)


CUT = 4_000, 4_000, (("original", 4), ("vit", 8))  # of two profiles: the longer one trains no run of the other again
PROFILES = {
    "smoke": Profile("smoke", 100, 60, (("original", 1), ("vit", 1)), seeds=1, scope=BRIEF),
    "quick": Profile("quick", 1_500, 1_000, (("original", 2), ("vit", 4)), seeds=1, scope=BRIEF),
    "hours": Profile("hours", *CUT, scope=HOURS),
    "days": Profile("days", *CUT, scope=DAYS),
    "full": Profile("full"),
}


def knob(name: str, value: Any, scope: int = BRIEF) -> Entry:
    """Return an entry of 2.3: the modern ViT with one argument of the model changed.

    Several at once: their names joined by "+", as in ``"d_model+num_heads"``, and as many values in a list.
    """
    names, values = name.split("+"), list(value) if "+" in name and isinstance(value, list | tuple) else [value]
    if len(names) != len(values):
        raise UserError(f"{name} 是 {len(names)} 个参数，而给了 {len(values)} 个值 {values}；请一个参数给一个值。")
    label = "、".join(map(knobs.told, names, values))
    return Entry(label, knobs.modern(**dict(zip(names, values, strict=True))), 3, (3, 12), scope)


def _knobs() -> list[Entry]:
    """Return the entries of 2.3: the modern ViT's settings, the original's, and the latter with a linear classifier."""
    later = (3, 12)
    out = [
        Entry("现代 ViT", knobs.BASE, 3, later),
        Entry("原系统", knobs.ORIGINAL, 3, later),
        Entry("原系统，线性分类头", knobs.linear(knobs.ORIGINAL), 3, later),
    ]
    for name, (_, *values) in knobs.KNOBS.items():
        out += [knob(name, value, scope) for scope, own in enumerate(values) for value in own]
    for width in (64, 128, 512):
        both = knobs.modern(d_model=width, ffn_hidden_channels=2 * width)
        out.append(Entry(f"{knobs.COUPLED}{width}", both, 3, later, BRIEF if width == 64 else DAYS))
    for name, by_value in (knobs.SETTINGS | {"patch_size": knobs.PATCHES}).items():
        for value, recipe in by_value.items():
            scope = BRIEF if value in (8, 16, 64) and name != "num_heads" else DAYS
            setting = knobs.told(name, value) + "（更正随机失活）" * (value == 16 and name == "patch_size")
            if recipe is not knobs.ORIGINAL:
                out.append(Entry(f"原系统，{setting}", recipe, 3, later, scope))
            if recipe is not knobs.ORIGINAL and name != "num_heads":  # a classifier knows nothing of heads
                out.append(Entry(f"原系统，线性分类头，{setting}", knobs.linear(recipe), 3, later, scope))
    return out


def _combinations(family: str, title: str) -> list[Entry]:
    """Return the entries of 2.2 with the original's four remedies on and off; minutes of a processor do for two."""

    def scope(chosen: frozenset[str]) -> int:
        return FULL if family == "original" else BRIEF if chosen in (set("A"), set("AW")) else HOURS

    return [
        Entry(f"{title}：{remedies.told(chosen)}", remedies.combination(family, chosen), 6, (7, 8), scope(chosen))
        for chosen in remedies.SUBSETS
    ]


def _remedies() -> list[Entry]:
    """Return the entries of 2.2 with what the original lacked: on the data as it is, and cut to long tails."""
    brief = {"分类头重训（cRT）", *remedies.FREE}
    out = [
        Entry(label, remedies.remedied(label), 6, (7, 8), BRIEF if label in brief else DAYS)
        for label in remedies.LACKED
        if label not in ("类别加权", *remedies.MILD_ONLY)  # the first is one of the combinations
    ]
    out += [Entry(label, remedies.remedied(label), 9, scope=DAYS) for label in remedies.MILD_ONLY]
    out += [Entry(f"掩码预训练（掩码率 {it:g}）", remedies.masked(it), 9, scope=FULL) for it in remedies.MASKED]
    for factor in remedies.FACTORS:
        tail: dict[str, Recipe] = {"交叉熵": remedies.BASE, "四项全用": remedies.NEW_ALL}
        tail |= {label: remedies.remedied(label) for label in remedies.LACKED if label not in remedies.MILD_ONLY}
        out += [
            Entry(
                f"IF {factor}：{label}", remedies.on_tail(recipe, factor), 9, factor=factor,
                scope=BRIEF if factor == max(remedies.FACTORS) and label in {"交叉熵", *remedies.FREE} else HOURS,
            )
            for label, recipe in tail.items()
        ]  # fmt: skip
    return out


SECTIONS: dict[str, list[Entry]] = {
    "2.1": [
        Entry("最佳配方", recipes.BEST, 1, (2, 4)),
        Entry("原系统（vanilla）", recipes.VANILLA, 1, (2, 4)),
        Entry("原系统（improved）", recipes.IMPROVED, 1, (2, 4)),
        Entry("现代 ViT", recipes.VIT, 1, (2, 4)),
        *(Entry(*step, 10, (11, 12 if i else 11), FULL) for i, step in enumerate(recipes.LADDER[1:-1])),
        *(Entry(label, recipe, 10, (11,), FULL) for label, recipe in recipes.OTHERS.items()),
    ],
    "2.2": [
        Entry("原系统（vanilla）", recipes.VANILLA, 1, (2, 4)),
        Entry("原系统（improved）", recipes.IMPROVED, 1, (2, 4)),
        Entry("现代 ViT", recipes.VIT, 1, (2, 4)),
        *_combinations("original", "原系统"),
        *_combinations("vit", "现代 ViT"),
        *(  # cut to a profile's epochs, a control that is longer would be none
            Entry(label, it, 6, (7, 8), HOURS if (it.model, it.epochs) == ("vit", remedies.EPOCHS) else FULL)
            for label, it in remedies.CONTROLS.items()
        ),
        *_remedies(),
    ],
    "2.3": [
        Entry("原系统（图像块 16，遇非有限值即停）", recipes.PATCH16, 1, (2, 4)),
        Entry("原系统（图像块 16，照原样继续）", recipes.PATCH16_ON, 1, (2, 4)),
        Entry("原系统（图像块 16，更正随机失活）", recipes.PATCH16_FIXED, 1, (2, 4)),
        Entry("原系统（improved）", recipes.IMPROVED, 1, (2, 4)),
        *_knobs(),
    ],
    "2.4": [
        Entry("现代 ViT", recipes.VIT, 1, (2, 4)),
        Entry("最佳配方", recipes.BEST, 1, (2, 4)),
        *(Entry(label, recipe, 5, scope=scope) for label, recipe, scope in light.METHODS),
    ],
}


@dataclass(frozen=True)
class Job:
    """One run to have: a fitted recipe, a seed, and the tier it belongs to."""

    recipe: Recipe
    seed: int
    tier: int
    label: str
    factor: float = 0.0


@lru_cache(maxsize=4)  # many jobs ask for the same cut
def tailed(data: Dataset, factor: float) -> Dataset:
    """Return the data that an entry or a job of this ``factor`` trains on: CIFAR-10-LT where CIFAR-10 is at hand."""
    whole = factor and data.name == "cifar10" and load("cifar10", image_size=data.image_size)
    if whole and whole.fingerprint == data.fingerprint:
        return load("cifar10-lt", image_size=data.image_size, imbalance_factor=factor)
    return long_tail(data, factor) if factor else data


def profile_named(name: str, **overrides: int | None) -> Profile:
    """Return a profile by name; ``full:2`` is ``full`` up to its second tier.

    ``images``, ``test_images``, ``epochs``, ``seeds`` and ``tier`` that are not None replace its own. Raises UserError for
    a profile that is not there, and for a number that is none.
    """
    base, _, tier = name.partition(":")
    if base not in PROFILES or (tier and tier not in map(str, TIERS)):
        raise UserError(f"没有叫 {name} 的档位；可用的档位：{'、'.join(PROFILES)}、auto（published 只用于报告）。")
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    if wrong := [f"{k}={v!r}" for k, v in given.items() if type(v) is not int or v < (k != "epochs")]:
        raise UserError(f"{'、'.join(wrong)} 须为正整数（轮数也可为 0）；请改正后重来。")
    if tier:
        # the first tier has one seed, more come with the second
        given = {"tier": int(tier)} | ({"seeds": 1} if tier == "1" else {}) | given
    if "epochs" in given:
        given["epochs"] = tuple((model, given["epochs"]) for model in ("original", "vit"))
    return replace(PROFILES[base], **given)


def jobs(section: str, profile: Profile) -> list[Job]:
    """Return the runs of a section (``all`` for every section), each once, in the order a GPU should take them."""
    if section != "all" and section not in SECTIONS:
        raise UserError(f"没有叫 {section} 的计划；可用的计划：{'、'.join(SECTIONS)}、all。")
    entries = [e for name, table in SECTIONS.items() if section in ("all", name) for e in table]
    found: dict[str, Job] = {}
    for entry in entries:
        for seed in range(profile.seeds):
            if profile.takes(entry, seed):
                job = Job(profile.fit(entry.recipe), seed, entry.tier_of(seed), entry.label, entry.factor)
                key = job.recipe.key(seed, f"{job.factor}")
                found[key] = min(found.get(key, job), job, key=lambda each: each.tier)  # whichever wants it first
    return sorted(found.values(), key=lambda job: job.tier)
