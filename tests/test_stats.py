"""Intervals by simulation, verdicts at their borders, Holm against closed testing, and the sentences."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, ttest_1samp

from labreport.stats import (
    above_zero,
    compare,
    compare_table,
    corrected,
    frame,
    holm,
    judge,
    summary,
    verdict_claim,
)
from vitlib.errors import UserError

IMAGES = 1000


def runs(rng, seeds, mean, difficulty, seed_sd=0.0, taste_sd=0.5):
    """Seeds x images of a probit model: an image's difficulty, the recipe's taste, the seed's luck, noise."""
    images = difficulty.size
    spread = math.sqrt(1 + difficulty.sd**2 + taste_sd**2 + seed_sd**2)
    latent = mean * spread + difficulty.values + taste_sd * rng.standard_normal(images, dtype="f")
    latent = latent + seed_sd * rng.standard_normal((seeds, 1), dtype="f")
    return list(latent + rng.standard_normal((seeds, images), dtype="f") > 0)


class Difficulty:
    def __init__(self, rng, size=IMAGES, sd=1.0):
        self.size, self.sd = size, sd
        self.values = sd * rng.standard_normal(size, dtype="f")


@pytest.mark.parametrize(
    ("seeds", "gap", "seed_sd", "taste_sd"),
    [
        ((3, 3), 0.0, 0.0, 0.0),  # one recipe against itself, nothing but noise
        ((3, 3), 0.0, 0.03, 0.5),
        ((3, 3), 0.1, 0.1, 0.5),  # seed and image terms alike
        ((3, 3), 0.1, 0.3, 0.0),  # seeds dominate
        ((3, 8), 0.1, 0.1, 0.5),
        ((6, 6), 0.1, 0.1, 1.0),
    ],
)
def test_the_interval_covers_the_true_difference_as_often_as_it_says(seeds, gap, seed_sd, taste_sd):
    assert 0.93 <= coverage(seeds, gap, (seed_sd, seed_sd), taste_sd) <= 0.993  # 0.99 and the simulation's own error


@pytest.mark.parametrize("seed_sd", [(0.0, 0.1), (0.0, 0.3)])
def test_where_one_recipes_seeds_do_not_spread_at_all_three_seeds_cover_a_little_less(seed_sd):
    assert 0.90 <= coverage((3, 3), 0.0, seed_sd, 0.5) <= 0.98


def coverage(seeds, gap, seed_sd, taste_sd, repeats=1200):
    """Return how often the interval holds the true difference of two recipes whose seeds spread by ``seed_sd``."""
    rng = np.random.default_rng(0)
    # a recipe's own spread does not move its mean: runs() scales the threshold with it
    truth = norm.cdf(1.2 + gap) - norm.cdf(1.2)
    covered = 0
    for _ in range(repeats):
        difficulty = Difficulty(rng)
        a = runs(rng, seeds[0], 1.2 + gap, difficulty, seed_sd[0], taste_sd)
        b = runs(rng, seeds[1], 1.2, difficulty, seed_sd[1], taste_sd)
        result = compare(a, b)
        covered += result.low <= truth <= result.high
    return covered / repeats


def pair(seed, mean_a, mean_b, seeds=(3, 3), size=4000):
    rng = np.random.default_rng(seed)
    difficulty = Difficulty(rng, size)
    return runs(rng, seeds[0], mean_a, difficulty), runs(rng, seeds[1], mean_b, difficulty)


def test_a_clear_difference_is_called_by_its_direction():
    a, b = pair(0, 1.4, 1.0)
    better, worse = compare(a, b, ("改进版", "基线")), compare(b, a, ("基线", "改进版"))
    accuracy = [np.mean(x) for x in (a, b)]
    assert better.difference == pytest.approx(accuracy[0] - accuracy[1])
    assert (better.verdict, worse.verdict) == ("较高", "较低")
    assert better.p == pytest.approx(worse.p) and better.p < 0.001
    assert (worse.low, worse.high) == (pytest.approx(-better.high), pytest.approx(-better.low))
    points = f"{100 * better.difference:.1f}"
    interval = f"[{100 * better.low:.1f}, {100 * better.high:.1f}]"
    assert better.sentence == (f"改进版比基线高 {points} 个百分点（95 % 区间 {interval}，各 3 个种子），差异显著。")
    assert worse.sentence == (f"基线比改进版低 {points} 个百分点（95 % 区间 {interval}，各 3 个种子），差异显著。")


def test_verdict_turns_exactly_where_the_interval_leaves_zero_or_the_margin():
    a, b = pair(1, 1.2, 1.13)
    result = compare(a, b)
    assert (result.p < 0.05) == (result.low > 0 or result.high < 0)
    reach = max(abs(result.low), abs(result.high))
    assert compare(a, b, margin=reach * 1.001).verdict == "等价"
    assert compare(a, b, margin=reach * 0.999).verdict != "等价"
    # At the level where the interval just touches zero, p is that level.
    at_p = compare(a, b, alpha=result.p)
    assert min(abs(at_p.low), abs(at_p.high)) < 1e-12


def test_without_a_decision_the_sentence_says_so():
    a, b = pair(2, 1.2, 1.2, size=400)
    result = compare(a, b, ("ViT", "基线"))
    assert result.verdict == "证据不足"
    assert result.low < 0 < result.high
    assert result.sentence.startswith("ViT 比基线") and "证据不足，不能断定孰高孰低。" in result.sentence


def test_a_significant_but_small_difference_is_equivalent():
    a, b = pair(3, 1.3, 1.2, seeds=(5, 5))
    assert compare(a, b, margin=0.001).verdict == "较高"
    wide = compare(a, b, margin=0.1)
    assert wide.verdict == "等价" and "不超出 ±10 个百分点，视为等价" in wide.sentence


@pytest.mark.parametrize("seeds", [(1, 1), (2, 5), (5, 2)])
def test_fewer_than_three_seeds_never_decide(seeds):
    a, b = pair(4, 2.5, 0.0, seeds)
    result = compare(a, b)
    assert result.verdict == "证据不足" and math.isnan(result.p)
    assert "只计图像的抽样误差" in result.sentence and "种子少于 3 个，证据不足" in result.sentence
    # The interval is then the paired t interval over images.
    gaps = np.mean(a, axis=0) - np.mean(b, axis=0)
    expected = ttest_1samp(gaps, 0).confidence_interval()
    assert (result.low, result.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_identical_results_are_equivalent_without_an_interval():
    a, _ = pair(5, 1.2, 1.2)
    result = compare(a, list(a))
    assert (result.difference, result.low, result.high, result.p) == (0, 0, 0, 1)
    assert result.verdict == "等价" and "完全相同" in result.sentence
    single = compare(a[:1], a[:1])
    assert single.verdict == "证据不足" and "完全相同" in single.sentence and "证据不足" in single.sentence
    assert frame([result, single])["结论"].tolist() == ["对错相同", "对错相同"]
    assert compare(a, a[::-1]).low < 0  # the same accuracies from other seeds prove nothing about equality


def test_seeds_that_agree_by_luck_do_not_make_the_interval_vanish():
    # Two recipes, equal accuracy at every seed, but different images right: noise by the thousand.
    rng = np.random.default_rng(0)
    base = np.arange(1000) < 900
    a, b = ([rng.permutation(base) for _ in range(3)] for _ in range(2))
    result = compare(a, b)
    rest = base.var(ddof=1) / 1000
    assert result.difference == pytest.approx(0)
    assert result.high == pytest.approx(1.96 * math.sqrt(2 * rest / 3), rel=0.05)


def test_more_seeds_and_more_images_narrow_the_interval():
    def width(seeds, size):
        widths = []
        for seed in range(5):
            result = compare(*pair(seed, 1.2, 1.2, (seeds, seeds), size))
            widths.append(result.high - result.low)
        return np.mean(widths)

    assert width(10, 1000) < width(3, 1000)
    assert width(3, 4000) < width(3, 1000)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=0, max_size=5))
def test_holm_is_closed_testing_with_bonferroni(p):
    adjusted = holm(p)
    for index in range(len(p)):
        others = [other for other in range(len(p)) if other != index]
        families = [(index, *rest) for size in range(len(p)) for rest in itertools.combinations(others, size)]
        expected = max(min(1, len(family) * min(p[member] for member in family)) for family in families)
        assert adjusted[index] == pytest.approx(expected)


def test_a_table_is_corrected_and_keeps_its_order():
    rng = np.random.default_rng(7)
    difficulty = Difficulty(rng, 2000)
    table = {
        "基线": runs(rng, 4, 1.0, difficulty),
        "很好": runs(rng, 4, 1.6, difficulty),
        "一个种子": runs(rng, 1, 1.6, difficulty),
        "稍好": runs(rng, 4, 1.1, difficulty),
    }
    rows = compare_table(table, "基线")
    single = compare(table["稍好"], table["基线"])
    assert [row.names for row in rows] == [("很好", "基线"), ("一个种子", "基线"), ("稍好", "基线")]
    # Two tests count; the larger p stays as it is, the smaller doubles, the single seed has none.
    assert rows[0].p == pytest.approx(2 * compare(table["很好"], table["基线"]).p)
    assert math.isnan(rows[1].p) and rows[1].verdict == "证据不足"
    assert rows[2].p == pytest.approx(single.p)
    assert (rows[2].low, rows[2].high) == (single.low, single.high)
    shown = frame(rows)
    assert list(shown["结论"]) == [row.verdict for row in rows]
    assert frame([replace(single, difference=2e-5, low=-4e-4)]).iloc[0, 1:3].tolist()[0] == "0.0"  # not "+0.00"
    assert shown["对比"][0] == "很好 − 基线" and shown["校正 p"][1] == "—"
    assert list(shown["种子"]) == ["4", "1 / 4", "4"]
    assert [text[-1] for text in shown["95 % 区间"]] == ["]", "‡", "]"]  # of one seed: the images' error alone
    assert list(frame([single]))[-2:] == ["p", "结论"]  # one comparison alone is not corrected
    assert list(frame([rows[1]]))[-2:] == ["种子", "结论"] and list(frame([rows[1]])["结论"]) == [
        "证据不足"
    ]  # no test, no column
    with pytest.raises(UserError, match="基线"):
        compare_table(table, "不存在")


def test_a_difference_lost_to_holm_says_why():
    table = {"基线": (base := pair(8, 1.2, 1.2)[1])}
    borderline = next(
        candidate
        for seed in range(200)
        for candidate in [runs(np.random.default_rng(seed), 3, 1.3, Difficulty(np.random.default_rng(8), 4000))]
        if 0.02 < compare(candidate, base, margin=0).p < 0.05
    )
    for index in range(4):
        table[f"方案 {index}"] = borderline
    row = compare_table(table, "基线", margin=0)[0]
    assert row.low > 0 and row.verdict == "证据不足"
    assert "但经 Holm 校正后 p = 0." in row.sentence


def test_claims_hold_fail_or_stay_open():
    better = compare(*pair(0, 1.4, 1.0))
    worse = compare(*pair(0, 1.0, 1.4))
    open_ = compare(*pair(4, 2.5, 0.0, (1, 1)))
    assert judge(better) == "成立"
    assert judge(worse) == "不成立"
    assert judge(better, open_) == "证据不足"
    assert judge(better, open_, worse) == "不成立"
    assert judge(worse, expected=("较低", "等价")) == "成立"
    claim = verdict_claim("预训练有帮助", better)
    assert claim == f"“预训练有帮助”：成立。{better.sentence}"
    with pytest.raises(UserError):
        judge()


def test_any_measures_differences_are_judged_by_their_interval_and_three_seeds():
    assert above_zero([0.2, 0.3, 0.25]) == "成立" and above_zero([-0.2, -0.3, -0.25]) == "不成立"
    assert above_zero([0.2, 0.3]) == above_zero([0.5]) == "证据不足"  # too few seeds, however clear
    assert above_zero([0.2, -0.1, 0.3]) == above_zero([np.nan, 1, 2]) == "证据不足"


def test_pairs_of_their_own_are_corrected_as_one_table_too():
    rows = [compare(*pair(seed, 1.15, 1.0)) for seed in range(3)]
    few = compare(*(side[:1] for side in pair(9, 1.4, 1.0)))
    table = corrected([*rows, few])
    assert [row.p for row in table[:3]] == holm([row.p for row in rows]) and table[3] is few
    assert all(row.holm for row in table[:3])


def test_summary_is_the_t_interval():
    values = [0.71, 0.73, 0.70, 0.74]
    result = summary(values)
    expected = ttest_1samp(values, 0).confidence_interval()
    assert (result.mean, result.n) == (pytest.approx(0.72), 4)
    assert result.std == pytest.approx(np.std(values, ddof=1))
    assert (result.low, result.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert result.percent == "72.0 ± 1.8"
    joined = summary(values, images=2000)  # the seeds' half width and the images', as two sides of a right angle
    images = norm.ppf(0.975) * math.sqrt(0.72 * 0.28 / 2000)
    assert (joined.mean, joined.std) == (result.mean, result.std)
    assert joined.high - joined.mean == pytest.approx(math.hypot(expected.high - 0.72, images))
    single = summary([0.5])
    assert single.percent == "50.0" and math.isnan(single.std) and math.isnan(single.low)
    with pytest.raises(UserError):
        summary([])


def test_results_that_cannot_be_paired_are_refused():
    a, b = pair(0, 1, 1)
    with pytest.raises(UserError, match="配对"):
        compare(a, [run[:100] for run in b])
    with pytest.raises(UserError, match="失败"):
        compare([a[0], a[1][:7]], b)
    with pytest.raises(UserError, match="无"):
        compare([], b)
