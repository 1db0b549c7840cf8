"""What the results of several seeds allow one to say: means, intervals, verdicts and their sentences.

Accuracies and differences are fractions (0-1) in the code and percentage points in the sentences.

The model behind ``compare``. Whether seed s of recipe A gets test image i right is

    y_si = mean_A + seed_s + image_i + rest_si,

and likewise for B. A conclusion has to hold for other seeds and other images, so with n_A and n_B seeds and N images
the variance of the difference of the two mean accuracies is

    var(seed_A + rest_A / N) / n_A + var(seed_B + rest_B / N) / n_B + var(image_A - image_B) / N.

1. The variance of a recipe's n accuracies estimates its seed term, rest included, with n - 1 degrees of freedom. Three
   seeds may agree by luck, but the term cannot be below var(rest) / N, which the many cells of the seeds x images table
   give precisely: what lacks is added, with (n - 1)(N - 1) degrees.
2. The variance over images of (mean of A's seeds - mean of B's seeds) pairs the images, but it holds
   var(rest) / n_A + var(rest) / n_B once more; these are taken off, down to nothing at most.
3. The sum gets Satterthwaite's degrees of freedom, as in Welch's test, with N - 1 for the image term.

Both bounds err towards a wide interval: by simulation (tests/test_stats.py) it covers 94 to 99 % where both recipes'
seeds spread alike, from not at all to far more than the images' sampling error. Where one recipe's do not spread at all
and the other's do, three seeds of each cover 91 to 94 %, and very small p values come out too small.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student

from vitlib.errors import UserError

Verdict = Literal["较高", "较低", "等价", "证据不足"]
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and interval of n values; the last three NaN for n = 1."""

    mean: float
    std: float
    n: int
    low: float
    high: float

    @property
    def percent(self) -> str:
        """``67.4 ± 0.5``: mean and deviation in percent, the deviation left out for one value."""
        return f"{100 * self.mean:.1f}" + ("" if math.isnan(self.std) else f" ± {100 * self.std:.1f}")


def summary(values: Sequence[float], alpha: float = 0.05, images: int = 0) -> Summary:
    """Summarise one value per seed; the binomial error of ``images`` joins the interval. UserError without a value."""
    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise UserError("没有可以汇总的数值：请先完成至少一次训练。")
    mean = float(data.mean())
    if data.size == 1:
        return Summary(mean, math.nan, 1, math.nan, math.nan)
    std = float(data.std(ddof=1))
    half = float(student.ppf(1 - alpha / 2, data.size - 1)) * std / math.sqrt(data.size)
    if images:  # the values are accuracies on so many test images
        half = math.hypot(half, norm.ppf(1 - alpha / 2) * math.sqrt(mean * (1 - mean) / images))
    return Summary(mean, std, data.size, mean - half, mean + half)


@dataclass(frozen=True)
class Comparison:
    """The accuracy of ``names[0]`` minus that of ``names[1]``, with what may be concluded from it.

    difference, low, high, margin: fractions; the interval has confidence 1 - alpha.
    p: two-sided, of no difference (Holm's in a table); NaN with fewer than three seeds of either.
    p_equivalence: of a true difference of ``margin`` or more, either way; one-sided, the larger of the two.
    holm: whether the p values are corrected for a table's multiple comparisons.
    """

    names: tuple[str, str]
    seeds: tuple[int, int]
    difference: float
    low: float
    high: float
    p: float
    p_equivalence: float
    margin: float
    alpha: float
    identical: bool = False
    holm: bool = False

    @property
    def verdict(self) -> Verdict:
        """等价 when the interval is within the margin, even without zero in it; 证据不足 under 3 seeds."""
        if min(self.seeds) < FEWEST_SEEDS:
            return "证据不足"
        if self.p_equivalence < self.alpha / 2:
            return "等价"
        if self.p < self.alpha:
            return "较高" if self.difference > 0 else "较低"
        return "证据不足"

    @property
    def sentence(self) -> str:
        """The finding as a Chinese sentence, in percentage points and from the first name's side."""
        (a, b), (n_a, n_b) = self.names, self.seeds
        seeds = f"各 {n_a} 个种子" if n_a == n_b else f"种子数分别为 {n_a} 与 {n_b}"
        few = min(n_a, n_b) < FEWEST_SEEDS
        if self.identical:
            end = f"种子少于 {FEWEST_SEEDS} 个，证据不足" if few else "两者等价"
            return spaced(f"{a}与{b}在每个种子、每张测试图像上的对错完全相同（{seeds}），{end}。")
        lower = self.difference < 0  # "低 3.2" is told with [2.1, 4.3]: the interval has the sign of the words
        low, high = (-self.high, -self.low) if lower else (self.low, self.high)
        level = f"{'只计图像的抽样误差，' if few else ''}{100 * (1 - self.alpha):g} % 区间"
        gap = f"比{b}{'低' if lower else '高'} {points(abs(self.difference))} 个百分点"
        finding = a + (gap if abs(self.difference) >= 5e-5 else f"与{b}的均值相同")
        return spaced(f"{finding}（{level} [{points(low)}, {points(high)}]，{seeds}），{self._conclusion(few)}。")

    def _conclusion(self, few: bool) -> str:
        if few:
            return f"种子少于 {FEWEST_SEEDS} 个，证据不足"
        if self.verdict == "等价":
            return f"差异不超出 ±{100 * self.margin:g} 个百分点，视为等价"
        if self.verdict == "证据不足":
            outside = self.low > 0 or self.high < 0
            reason = f"但经 Holm 校正后 p = {self.p:.2f}，" if self.holm and outside else ""
            return f"{reason}证据不足，不能断定孰高孰低"
        return "差异显著"


def compare(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    names: tuple[str, str] = ("甲", "乙"),
    margin: float = 0.01,
    alpha: float = 0.05,
) -> Comparison:
    """Compare the accuracies of two recipes, a - b, from runs on the same test images.

    ``a`` and ``b`` hold one bool array (images,) per seed: was the image classified rightly? All arrays have the same
    order of images; the numbers of seeds may differ. With fewer than three seeds of either, the interval knows only the
    images' sampling error, and the verdict is 证据不足. Raises UserError without a run, or for arrays not of one length.
    """
    tables = [_table(runs, name) for runs, name in zip((a, b), names, strict=True)]
    if tables[0].shape[1] != tables[1].shape[1]:
        raise UserError(
            f"{names[0]}有 {tables[0].shape[1]} 张测试图像，{names[1]}有 {tables[1].shape[1]} 张，"
            "两者不能配对比较：请在同一测试集上训练与评测。"
        )
    gaps = tables[0].mean(axis=0) - tables[1].mean(axis=0)
    return weigh(tables, gaps, names, margin, alpha, np.array_equal(tables[0], tables[1]))


def weigh(
    tables: Sequence[np.ndarray], gaps: np.ndarray, names: tuple[str, str], margin: float, alpha: float, identical: bool
) -> Comparison:
    """Judge the mean of ``gaps`` (images,), which were made from the seeds' means of ``tables`` (seeds, images).

    One table of differences stands for seeds that are paired, two for seeds that are not.
    """
    seeds = (len(tables[0]), len(tables[-1]))
    images, difference = len(gaps), float(gaps.mean())
    image_term = float(gaps.var(ddof=1)) / images
    parts: list[tuple[float, int]] = []  # (share of the variance, its degrees of freedom)
    if min(seeds) >= FEWEST_SEEDS:
        for table, n in zip(tables, seeds, strict=False):
            seed_term = float(table.mean(axis=1).var(ddof=1))
            rest = _rest_variance(table) / images
            parts += [(seed_term / n, n - 1), (max(0.0, rest - seed_term) / n, (n - 1) * (images - 1))]
            image_term -= rest / n
    parts.append((max(0.0, image_term), images - 1))
    variance = 0.0 if identical else sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts) if variance else images - 1
    error = math.sqrt(variance)
    half = float(student.ppf(1 - alpha / 2, freedom)) * error
    return Comparison(
        names=(names[0], names[1]),
        seeds=seeds,
        difference=difference,
        low=difference - half,
        high=difference + half,
        p=2 * _tail(abs(difference), error, freedom) if min(seeds) >= FEWEST_SEEDS else math.nan,
        p_equivalence=_tail(margin - abs(difference), error, freedom),
        margin=margin,
        alpha=alpha,
        identical=identical,
    )


def compare_table(
    runs: Mapping[str, Sequence[np.ndarray]], baseline: str, margin: float = 0.01, alpha: float = 0.05
) -> list[Comparison]:
    """Compare every other entry with ``baseline``, in the table's order, ``corrected``; UserError without a baseline."""
    if baseline not in runs:
        raise UserError(f"比较表中没有基线“{baseline}”：可选 {'、'.join(runs)}。")
    others = {name: correct for name, correct in runs.items() if name != baseline}
    return corrected([compare(them, runs[baseline], (name, baseline), margin, alpha) for name, them in others.items()])


def corrected(rows: Sequence[Comparison]) -> list[Comparison]:
    """Return a table's comparisons with Holm's correction of both p; the intervals stay those of single comparisons."""
    enough = [row for row in rows if not math.isnan(row.p)]
    p = dict(zip(map(id, enough), holm([row.p for row in enough]), strict=True))
    q = dict(zip(map(id, enough), holm([row.p_equivalence for row in enough]), strict=True))
    return [replace(row, p=p[id(row)], p_equivalence=q[id(row)], holm=True) if id(row) in p else row for row in rows]


def above_zero(differences: Sequence[float], alpha: float = 0.05) -> Literal["成立", "不成立", "证据不足"]:
    """Judge whether the mean of paired differences, one a seed, is above zero for other seeds on these images."""
    found = summary(differences, alpha)
    if found.n < FEWEST_SEEDS or not (found.low > 0 or found.high < 0):
        return "证据不足"
    return "成立" if found.low > 0 else "不成立"


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted by Holm 1979: the k-th smallest of m times m - k + 1, never falling, at most 1."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1).tolist()


def frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """The comparisons as a table for readers, in percentage points; ‡: an interval of the images' error alone."""
    tested = "校正 p" if any(row.holm for row in comparisons) else "p"
    spans = [f"[{points(x.low)}, {points(x.high)}]{' ‡' * (min(x.seeds) < FEWEST_SEEDS)}" for x in comparisons]
    table = pd.DataFrame(
        {
            "对比": [spaced(f"{row.names[0]} − {row.names[1]}") for row in comparisons],
            "差（百分点）": [points(row.difference, sign=True) for row in comparisons],
            "95 % 区间": spans,
            "种子": [" / ".join(map(str, dict.fromkeys(row.seeds))) for row in comparisons],
            tested: [_p_value(row.p) for row in comparisons],
            "结论": ["对错相同" if row.identical else row.verdict for row in comparisons],
        }
    )
    return table.drop(columns=tested) if all(math.isnan(row.p) for row in comparisons) else table


def judge(*comparisons: Comparison, expected: str | tuple[str, ...] = "较高") -> Literal["成立", "不成立", "证据不足"]:
    """Whether a claim holds that needs ``expected`` of every comparison: one verdict against it, 等价 too, refutes it."""
    wanted = (expected,) if isinstance(expected, str) else expected
    verdicts = [comparison.verdict for comparison in comparisons]
    if not verdicts:
        raise UserError("没有任何比较可以用来判断这一说法：请先完成相应的训练。")
    if any(verdict not in (*wanted, "证据不足") for verdict in verdicts):
        return "不成立"
    return "成立" if all(verdict in wanted for verdict in verdicts) else "证据不足"


def verdict_claim(claim: str, *comparisons: Comparison, expected: str | tuple[str, ...] = "较高") -> str:
    """``claim`` with its verdict (see ``judge``) and the findings behind it, as Chinese prose."""
    verdict = judge(*comparisons, expected=expected)
    return f"“{claim}”：{verdict}。{''.join(comparison.sentence for comparison in comparisons)}"


def _table(runs: Sequence[np.ndarray], name: str) -> np.ndarray:
    """The runs of one recipe as a float table (seeds, images)."""
    lengths = {len(correct) for correct in runs}
    if len(lengths) != 1 or min(lengths) < 2:
        raise UserError(
            f"{name}的各次结果须覆盖同样的测试图像（至少两张），而得到的张数为 {sorted(lengths) or '无'}："
            "请检查是否有训练失败或测试集不同的记录。"
        )
    return np.stack([np.asarray(correct, dtype=bool) for correct in runs]).astype(float)


def _rest_variance(table: np.ndarray) -> float:
    """Residual mean square of the layout seeds x images: what neither the seed nor the image explains."""
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return float((rest**2).sum() / ((len(table) - 1) * (table.shape[1] - 1)))


def _tail(distance: float, error: float, freedom: float) -> float:
    """Chance of a t variable beyond ``distance`` standard errors; without any error it is certain."""
    if error == 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(student.sf(distance / error, freedom))


def points(fraction: float, sign: bool = False) -> str:
    """Percentage points with one decimal, two where one would hide the sign; a true minus."""
    points = 100 * fraction if abs(fraction) >= 5e-5 else 0.0
    digits = 2 if 0 < abs(points) < 0.05 else 1
    return f"{points:{'+' if sign and points else ''}.{digits}f}".replace("-", "−")


def _p_value(p: float) -> str:
    return "—" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def spaced(text: str) -> str:
    """``text`` with the customary space between Chinese characters and Latin letters or digits."""
    return re.sub(r"(?<=[\u4e00-\u9fff])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9%])(?=[\u4e00-\u9fff])", " ", text)
