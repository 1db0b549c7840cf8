"""Our records on the whole of the course's data beside the numbers that other reports of the course print.

They print one number each, without seeds or an interval, most of them at the epoch that the test set liked best; a
comparison grants that number the sampling error of the test images and nothing else.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import pandas as pd
import torch
from scipy.stats import norm
from scipy.stats import t as student

from labreport.metrics import run_scores
from labreport.stats import FEWEST_SEEDS, Comparison, compare, corrected, points, spaced, summary
from labreport.study import SHORTEST
from vitlib.cost import count
from vitlib.data.course import TRAIN_COUNTS
from vitlib.models.embedding import STEMS, HybridStem
from vitlib.paths import share
from vitlib.recipe import Recipe
from vitlib.recipes import CPU_LADDER, CPU_PLAIN, RECIPES
from vitlib.record import Run
from vitlib.state import build_model

TEST_IMAGES = 4870
PROXY = "proxy"  # what benchmarks/trial.py calls the data set whose test set is the validation split


def printed() -> pd.DataFrame:
    """Return the other reports' rows: 报告, 模型, 参数量 / M (NaN where not told), 准确率 / % and 说明."""
    return _course().drop(columns="配方")


def printed_for(recipe: str) -> float:
    """Return the accuracy in percent that the earlier report prints for what is our recipe of this name.

    Raises KeyError: it prints none.
    """
    return float(_course().set_index("配方")["准确率 / %"][recipe])


def _course() -> pd.DataFrame:
    return pd.read_csv(share("report") / "references" / "course.csv")


def on_whole_data(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the finished runs that saw the course's whole data, by recipe and length, several seeds together.

    The longest training comes first; a failed run and one without test accuracy are left out, and so is one of a
    recipe that is another today, which a store keeps: two recipes of one name have no common mean.
    """
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        whole = run.data["test_images"] == TEST_IMAGES and sum(run.data["class_counts"]) == sum(TRAIN_COUNTS)
        today = RECIPES.get(run.name, run.recipe)
        same = SHORTEST.fit(today).spec() == SHORTEST.fit(run.recipe).spec()
        measured = not run.failed and not math.isnan(run.accuracy)
        if run.data["name"] in ("course", "cifar10") and whole and same and measured:
            groups.setdefault(titled(run), {}).setdefault(run.seed, run)
    found = {name: [group[seed] for seed in sorted(group)] for name, group in groups.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1][0].epochs))


def titled(what: Run | Recipe) -> str:
    """Return what :func:`on_whole_data` calls a recipe, or the recipe of a run.

    Epochs of a recipe whose weights it starts from are told as well, as in 8 + 8: they were learned from, too.
    """
    start = (what if isinstance(what, Recipe) else what.recipe).init_from
    return f"{what.name}（{f'{start.epochs} + ' if start else ''}{what.epochs} 轮）"


def is_hybrid(recipe: Recipe) -> bool:
    """Whether a small convolutional network makes the tokens, however it is built."""
    return issubclass(STEMS[recipe.model_args.get("stem", "patch")], HybridStem)


def is_whole(trial: Run) -> bool:
    """Whether a trial learned from all the training images but those that judge it."""
    return trial.data["train_images"] + trial.data["test_images"] == sum(TRAIN_COUNTS)


def on_validation(runs: Iterable[Run]) -> dict[str, Run]:
    """Return the trials of whole recipes that the validation split judged, by :func:`titled`, the best first.

    Those are runs of benchmarks/trial.py on all the training images but that tenth, at the recipes' own lengths. The
    mean of the classes' recalls orders them: it is what the balanced test set will ask for.
    """
    found: dict[str, Run] = {}
    for run in runs:
        same = run.name in RECIPES and RECIPES[run.name].spec() == run.recipe.spec()
        if run.data["name"] == PROXY and is_whole(run) and same and not run.failed:
            found.setdefault(titled(run), run)
    return dict(sorted(found.items(), key=lambda item: -run_scores(item[1])["balanced_accuracy"]))


def contenders(whole: Mapping[str, Sequence[Run]], best: str, judged: Mapping[str, Run]) -> list[str]:
    """Return which of :func:`on_whole_data`'s recipes joined the comparison with ``best`` after it, by label, and are not
    yet compared with it by ``judged``, those of :func:`on_validation`.
    """
    joined = [titled(RECIPES[f"cpu-{name}"]) for name in ("pooled", "mild", "wide", "again", "settled", "broad")]
    return [label for label in joined if {label, best} <= whole.keys() and not {label, best} <= judged.keys()]


def set_aside(whole: Mapping[str, Sequence[Run]]) -> str:
    """Return the recipe whose test accuracy was known when the first rule for ``best`` was given up, or nothing where
    :func:`on_whole_data` does not hold it. That has happened, whatever is compared since (benchmarks/RECIPE.md).
    """
    label = titled(RECIPES["cpu-pooled"])
    return label if label in whole else ""


def blocks_share_told(recipes: Mapping[str, Recipe]) -> str:
    """Return how much of each recipe's model lies in the encoder's blocks, by label, as one Chinese clause."""
    told = []
    for label, recipe in recipes.items():
        with torch.device("meta"):
            whole, bare = (count(build_model(it, 10, 32)) for it in (recipe, without_blocks(recipe)))
        params, flops = 1 - bare.params / whole.params, 1 - bare.flops / whole.flops
        told.append(f"{label}的编码器块占参数的 {100 * params:.0f} %、前向运算量的 {100 * flops:.0f} %")
    return spaced("，".join(told))


def without_blocks(recipe: Recipe) -> Recipe:
    """Return the recipe whose tokens go from the stem straight to the pooling: what its blocks are worth, it tells."""
    return recipe.but(model_args={"num_layers": 0})


def blocks_gains(runs: Sequence[Run]) -> dict[str, Comparison]:
    """Return what the blocks behind a convolutional stem add, by name of each recipe that has such a control.

    The trials are pairs of benchmarks/trial.py, judged by the validation split: a recipe, and the same without blocks,
    each at its full length on all the images but that tenth.
    """
    trials: dict[str, list[Run]] = {}
    for run in runs:
        if run.data["name"] == PROXY and is_whole(run) and not run.failed:
            trials.setdefault(f"{run.recipe.spec()}", []).append(run)
    pairs = [(group, trials.get(f"{without_blocks(group[0].recipe).spec()}", group)) for group in trials.values()]
    return {
        group[0].name: compare(
            [run.correct for run in group], [run.correct for run in bare], (f"{group[0].name} ", "去掉块的")
        )
        for group, bare in pairs
        if bare is not group
    }


def blocks_worth(name: str, runs: Sequence[Run]) -> str:
    """Return whether this recipe's own control shows that its blocks add anything, as one Chinese clause."""
    if not (gain := blocks_gains(runs).get(name)):
        return "它的编码器块值多少，没有去掉它们的对照，还不知道"
    (n, m), clear = gain.seeds, gain.low > 0 or gain.high < 0
    few = f"（{f'各 {n}' if n == m else f'{n} 与 {m}'} 个种子，区间只计图像的抽样误差）" * (min(n, m) < FEWEST_SEEDS)
    seen = f"有块的{'高' if gain.difference > 0 else '低'} {points(abs(gain.difference))} 个百分点{'，种子太少，证据不足' * bool(few)}"
    return f"与去掉编码器块的对照相比{few}，{seen if clear else '看不出这些块提高了准确率'}"


def blocks_told(recipes: Mapping[str, Recipe], runs: Sequence[Run]) -> str:
    """Return what is convolution and what Transformer in these recipes, and :func:`blocks_gains`, as Chinese sentences."""
    gains = blocks_gains(runs)
    begin = f"茎部是卷积网络，这些准确率里有多少来自 Transformer，要另外问。{blocks_share_told(recipes)}，其余几乎都在茎部。"
    if not gains:
        return spaced(f"{begin}去掉编码器块的对照没有记录，准确率里有多少来自编码器块，还不知道。")
    outcome = "没有一处区间说有块的更高。" * all(gain.low <= 0 for gain in gains.values())
    lacking = [label for label, recipe in recipes.items() if recipe.name not in gains]
    outcome += f"{'、'.join(lacking)}还没有这样的对照。" * bool(lacking)
    judges = next(len(run.correct) for run in runs if run.data["name"] == PROXY and is_whole(run))
    return spaced(
        f"{begin}对照是去掉编码器块、其余照旧的训练（没有块就不是 ViT，不参加 best 的比较），用 {sum(TRAIN_COUNTS) - judges:,} 张"
        f"训练图像学习，在 {judges:,} 张验证图像上比较：{''.join(gain.sentence for gain in gains.values())}{outcome}"
    )


def recall(run: Run) -> str:
    """Return what orders :func:`on_validation`, in percent."""
    return f"{100 * run_scores(run)['balanced_accuracy']:.1f}"


def behind(judged: Mapping[str, Run]) -> list[Comparison]:
    """Return how far the others of :func:`on_validation` are from its first, in accuracy, paired on the images."""
    (first, top), *rest = judged.items()
    return [compare([run.correct], [top.correct], (label, first)) for label, run in rest]


def chosen_told(judged: Mapping[str, Run], best: str) -> str:
    """Return which recipe the validation split puts first, and whether ``best`` follows it, as Chinese sentences."""
    if len(judged) < 2:
        return ""
    (first, top), (second, next_), *_ = judged.items()
    follows = "best 就归它" if first == best else f"而随项目发布的 best 还是{best or '别的配方'}，尚未换成它"
    return spaced(
        f"在验证集上比较了 {len(judged)} 个配方：用其余 {top.data['train_images']:,} 张训练图像训练满自己的轮数，判据是各类召回率"
        f"的平均。最高的是{first}，{recall(top)} %，{follows}；其次是{second}，{recall(next_)} %（两者准确率之差的判定是"
        f"{behind(judged)[0].verdict}）。"
    )


def seeded(name: str, seeds: int) -> str:
    """Return a name with its number of seeds, in the brackets that it ends with if it has some."""
    return f"{name[:-1]}，{seeds} 个种子）" if name.endswith("）") else f"{name}（{seeds} 个种子）"


def listed(groups: Mapping[str, Sequence[Run]]) -> str:
    """Return the test accuracies of recipes, with their seeds, as one Chinese clause."""
    said = [
        f"{seeded(label, len(group))}的测试准确率是 {summary([run.accuracy for run in group]).percent} %"
        for label, group in groups.items()
    ]
    return spaced("，".join(said))


def climbed(whole: Mapping[str, Sequence[Run]]) -> dict[str, Sequence[Run]]:
    """Return the rungs of the ladder to the published best that :func:`on_whole_data` holds, by label, lowest first."""
    return {label: whole[titled(recipe)] for label, recipe in CPU_LADDER if titled(recipe) in whole}


def is_rung(run: Run) -> bool:
    """Return whether a run is of a rung that is there for the ladder alone, and speaks for nothing else."""
    return run.name in {recipe.name for _, recipe in CPU_LADDER if recipe.epochs == CPU_PLAIN.epochs}


def gains(rungs: Mapping[str, Sequence[Run]]) -> list[Comparison]:
    """Return what each rung adds to the one right below it, where both are there: paired on the images, p by Holm."""
    correct = {label: [run.correct for run in group] for label, group in rungs.items()}
    neighbours = pairwise(label for label, _ in CPU_LADDER)
    return corrected([compare(correct[b], correct[a], (b, a)) for a, b in neighbours if {a, b} <= correct.keys()])


def gains_told(steps: Sequence[Comparison]) -> str:
    """Return which of :func:`gains` raised the accuracy, which did not and which are open, as Chinese sentences."""
    few = f"种子少于 {FEWEST_SEEDS} 个、证据不足的是"
    says = {
        "较高": "显著提高了准确率的是",
        "较低": "显著降低了准确率的是",
        "等价": f"与上一步相差不超过 {100 * max((step.margin for step in steps), default=0):g} 个百分点（视为等价）的是",
        "证据不足": "种子够数而分不出高下的是",
        few: few,
    }
    told = []
    for outcome, words in says.items():
        found = [step for step in steps if outcome == (few if min(step.seeds) < FEWEST_SEEDS else step.verdict)]
        found.sort(key=lambda step: -abs(step.difference))
        each = "、".join(
            f"“{step.names[0].removeprefix('+ ')}”（{points(step.difference, sign=True)} 个百分点）" for step in found
        )
        told += [f"{words}{each}"] * bool(found)
    return spaced("；".join(told) + "。") if told else ""


def spoken_for(whole: Mapping[str, Sequence[Run]], best: str = "") -> list[str]:
    """Return which of :func:`on_whole_data`'s recipes are to be compared.

    ``best``, the recipe of the published weights (how it came to that: benchmarks/RECIPE.md); where it is not there, the
    one trained on the most computation (of two that cost the same, the one with more seeds). Where that has too few
    seeds, the next of them that has enough comes before it.
    """
    ranked = sorted(
        whole, key=lambda name: (name != best, -whole[name][0].epochs * whole[name][0].flops, -len(whole[name]))
    )
    return list(dict.fromkeys([*[name for name in ranked if len(whole[name]) >= FEWEST_SEEDS][:1], *ranked[:1]]))


def lead(ours: Sequence[float], said: float, alpha: float = 0.05) -> tuple[float, float, float]:
    """Return the mean of our accuracies, one a seed, less a printed one, all in 0-1, and its interval.

    The interval joins the seeds' t interval with the images' binomial error of both sides, as if each had been tested
    on images of its own; with fewer than three seeds it knows the images' error only.
    """
    mine, n = summary(ours), len(ours)
    seeds = student.ppf(1 - alpha / 2, n - 1) * mine.std / math.sqrt(n) if n >= FEWEST_SEEDS else 0.0
    images = norm.ppf(1 - alpha / 2) * math.sqrt(sum(p * (1 - p) for p in (mine.mean, said)) / TEST_IMAGES)
    gap, half = mine.mean - said, math.hypot(float(seeds), float(images))
    return gap, gap - half, gap + half


def surpasses(ours: Sequence[float], said: float) -> bool:
    """Return whether enough seeds show that ours is above the printed accuracy."""
    return len(ours) >= FEWEST_SEEDS and lead(ours, said)[1] > 0


def against(ours: Sequence[float], printed: Mapping[str, float], name: str, alpha: float = 0.05) -> str:
    """Return :func:`lead` over each printed accuracy (by name) as a Chinese sentence; under three seeds, no conclusion.

    A printed accuracy is of one run: how far another seed would carry it is unknown, and not in the interval.
    """
    few, told = len(ours) < FEWEST_SEEDS, []
    for other, said in printed.items():
        gap, low, high = lead(ours, said, alpha)
        numbers = (
            f"{'高' if gap >= 0 else '低'} {100 * abs(gap):.1f} 个百分点（{100 * (1 - alpha):g} % 区间 "
            + "[{:.1f}, {:.1f}]）".format(*(100 * value for value in ((low, high) if gap >= 0 else (-high, -low))))
        ).replace("-", "−")
        verdict = "区间不含 0" if low > 0 or high < 0 else "证据不足，不能断定孰高孰低"
        told.append(f"比{other}的 {100 * said:.1f} % {numbers}" + ("" if few else f"，{verdict}"))
    told += [f"种子少于 {FEWEST_SEEDS} 个，证据不足"] * few
    return spaced(f"{seeded(name, len(ours))}的测试准确率是 {summary(ours).percent} %，{'；'.join(told)}。")
