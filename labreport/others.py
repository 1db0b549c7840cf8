"""Our records on the whole of the course's data beside the numbers that other reports of the course print.

They print one number each, without seeds or an interval, most of them at the epoch that the test set liked best; a
comparison grants that number the sampling error of the test images and nothing else.
"""

import math
from collections.abc import Iterable, Sequence

import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student

from labreport.stats import FEWEST_SEEDS, spaced, summary
from labreport.study import SHORTEST
from vitlib.paths import share
from vitlib.recipes import RECIPES
from vitlib.record import Run

TEST_IMAGES = 4870


def printed() -> pd.DataFrame:
    """Return the other reports' rows: 报告, 模型, 参数量 / M (NaN where not told), 准确率 / % and 说明."""
    return pd.read_csv(share("report") / "references" / "course.csv")


def on_whole_data(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the finished runs that saw the course's whole data, by recipe and length, several seeds together.

    The longest training comes first; a failed run and one without test accuracy are left out, and so is one of a
    recipe that is another today, which a store keeps: two recipes of one name have no common mean.
    """
    groups: dict[tuple[str, int], dict[int, Run]] = {}
    for run in runs:
        whole = run.data["test_images"] == TEST_IMAGES and "抽取的子集" not in run.data["provenance"]
        today = RECIPES.get(run.name, run.recipe)
        same = SHORTEST.fit(today).spec() == SHORTEST.fit(run.recipe).spec()
        measured = not run.failed and not math.isnan(run.accuracy)
        if run.data["name"] in ("course", "cifar10") and whole and same and measured:
            groups.setdefault((run.name, run.epochs), {}).setdefault(run.seed, run)
    ordered = sorted(groups.items(), key=lambda item: -item[0][1])
    return {f"{name}（{epochs} 轮）": [group[s] for s in sorted(group)] for (name, epochs), group in ordered}


def against(ours: Sequence[float], said: float, names: tuple[str, str], alpha: float = 0.05) -> str:
    """Return one Chinese sentence: the mean of our accuracies, one a seed, less a printed one, all in 0-1.

    The interval joins the seeds' t interval with the images' binomial error of both sides, as if each had been tested
    on images of its own; with fewer than three seeds it knows the images' error only, and nothing is concluded.
    """
    mine, n = summary(ours), len(ours)
    seeds = student.ppf(1 - alpha / 2, n - 1) * mine.std / math.sqrt(n) if n > 1 else 0.0
    images = norm.ppf(1 - alpha / 2) * math.sqrt(sum(p * (1 - p) for p in (mine.mean, said)) / TEST_IMAGES)
    gap, half = mine.mean - said, math.hypot(float(seeds) if n >= FEWEST_SEEDS else 0.0, float(images))
    low, high = (gap - half, gap + half) if gap >= 0 else (-gap - half, -gap + half)
    finding = (
        f"{names[0]}（{n} 个种子，{mine.percent} %）比{names[1]}的 {100 * said:.1f} % {'高' if gap >= 0 else '低'} "
        f"{100 * abs(gap):.1f} 个百分点（{100 * (1 - alpha):g} % 区间 [{100 * low:.1f}, {100 * high:.1f}]）"
    ).replace("-", "−")
    if n < FEWEST_SEEDS:
        return spaced(f"{finding}，种子少于 {FEWEST_SEEDS} 个，证据不足。")
    return spaced(f"{finding}，" + ("差异显著。" if low > 0 else "证据不足，不能断定孰高孰低。"))
