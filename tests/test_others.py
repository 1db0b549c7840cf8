"""Our records beside the numbers that other reports print."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labreport import others
from vitlib.data.course import TRAIN_COUNTS
from vitlib.recipes import CPU_LADDER, RECIPES
from vitlib.state import build_model


def run(
    name="cpu",
    seed=0,
    epochs=6,
    accuracy=0.7,
    images=4870,
    data="course",
    counts=TRAIN_COUNTS,
    failed=None,
    **changes,
):
    about = {"test_images": images, "name": data, "class_counts": list(counts)}
    recipe = RECIPES["cpu"].but(epochs=epochs, **changes)
    return SimpleNamespace(
        name=name, seed=seed, epochs=epochs, accuracy=accuracy, data=about, failed=failed, recipe=recipe
    )


def test_printed_numbers_are_percentages_and_name_nobody():
    table = others.printed()
    assert table["准确率 / %"].between(10, 100).all() and {"旧报告"} < set(table["报告"])
    assert (table["参数量 / M"].dropna() > 1).all() and not table["说明"].isna().any()
    assert all(name == "旧报告" or name.startswith("公开报告") for name in table["报告"])
    by_recipe = [others.printed_for(name) for name in ("original-vanilla", "original-improved")]
    assert by_recipe == [
        *table[table["模型"].str.startswith("原系统（v") | table["模型"].str.startswith("原系统（i")]["准确率 / %"]
    ]
    with pytest.raises(KeyError):
        others.printed_for("best")


def test_only_whole_finished_runs_of_the_courses_data_count():
    kept = [run(seed=1), run(seed=0), run(epochs=12), run(name="one's own", epochs=3, lr=0.5)]
    left_out = [
        run(images=1000),
        run(data="synthetic"),
        run(counts=[400] * 10),  # a subset
        run(counts=[4435, 2000, 1500, 1000, 600, 400, 250, 160, 90, 44]),  # a long tail cut from it
        run(failed={"message": "NaN"}),
        run(seed=2, lr=0.5),  # what this name stood for once
        run(accuracy=float("nan")),
    ]
    found = others.on_whole_data([*left_out, *kept])
    assert list(found) == ["cpu（12 轮）", "cpu（6 轮）", "one's own（3 轮）"]
    assert [each.seed for each in found["cpu（6 轮）"]] == [0, 1]


@pytest.mark.parametrize(
    ("ours", "said", "says"),
    [
        ([0.72, 0.725, 0.73], 0.674, "高 5.1 个百分点.*，区间不含 0。"),
        ([0.72, 0.725, 0.73], 0.867, "低 14.2 个百分点.*，区间不含 0。"),
        ([0.72, 0.725, 0.73], 0.723, "证据不足，不能断定"),
        ([0.60, 0.70, 0.80], 0.674, "证据不足，不能断定"),  # by the seeds
        ([0.725], 0.674, "种子少于 3 个，证据不足"),
    ],
)
def test_a_sentence_says_no_more_than_its_interval(ours, said, says):
    assert re.search(says, others.against(ours, {"旧报告": said}, "配方"))


def test_who_speaks_is_chosen_beforehand_and_never_by_the_result():
    def group(seeds, epochs, flops, accuracy):
        return [SimpleNamespace(epochs=epochs, flops=flops, accuracy=accuracy, seed=seed) for seed in range(seeds)]

    short, long, longest = group(3, 9, 2, 0.9), group(3, 16, 2, 0.8), group(1, 16, 3, 0.7)
    assert others.spoken_for({"short": short, "long": long, "longest": longest}) == ["long", "longest"]
    assert others.spoken_for({"short": short, "long": long}) == ["long"]
    as_dear = group(1, 16, 2, 0.9)
    assert others.spoken_for({"as dear": as_dear, "long": long}) == ["long"]  # the one with more seeds
    assert others.spoken_for({"longest": longest}) == ["longest"] and others.spoken_for({}) == []
    # the published best speaks, whatever it costs and whatever came of it
    assert others.spoken_for({"short": short, "long": long}, best="short") == ["short"]
    assert others.spoken_for({"short": group(2, 9, 2, 0.1), "long": long}, best="short") == ["long", "short"]
    assert others.spoken_for({"long": long}, best="not trained here") == ["long"]


def test_surpassing_takes_seeds_and_an_interval():
    assert others.surpasses([0.72, 0.725, 0.73], 0.674) and not others.surpasses([0.72, 0.725], 0.674)
    assert not others.surpasses([0.72, 0.725, 0.73], 0.723) and not others.surpasses([0.6, 0.7, 0.8], 0.674)


def test_a_sentence_keeps_a_recipes_name():
    assert others.against([0.7], {"旧报告": 0.8}, "配方 cpu-long").startswith("配方 cpu-long（1 个种子）的")
    several = others.against([0.7], {"旧报告": 0.8, "公开报告": 0.6}, "配方 cpu-long（16 轮）")
    assert several.startswith("配方 cpu-long（16 轮，1 个种子）的测试准确率是 70.0 %，比旧报告的 80.0 % 低 10.0")
    assert "；比公开报告的 60.0 % 高 10.0" in several and several.count("证据不足") == 1


def test_epochs_of_the_weights_that_a_recipe_starts_from_are_told():
    assert others.titled(RECIPES["cpu-again"]) == "cpu-again（8 + 8 轮）"
    assert others.titled(trial("cpu-again", [1] * 10)) == "cpu-again（8 + 8 轮）"


def test_what_the_blocks_are_worth_is_told_from_a_trial_without_them():
    wide, recipes = RECIPES["cpu-wide"], {"cpu-wide（8 轮）": RECIPES["cpu-wide"]}
    with torch.device("meta"):
        whole, stem = build_model(wide, 10, 32), build_model(wide, 10, 32).stem
    left = 1 - sum(p.numel() for p in stem.parameters()) / sum(p.numel() for p in whole.parameters())
    share = others.blocks_share_told(recipes)
    assert f"参数的 {100 * left:.0f} %" in share and "运算量的 10 %" in share
    assert others.blocks_told(recipes, [trial("cpu-wide", [0.9] * 10)]).endswith("还不知道。")
    bare = trial("cpu-wide", [0.8] * 10, model_args={"num_layers": 0})
    told = others.blocks_told(recipes, [trial("cpu-wide", [0.9] * 10), bare])
    assert "去掉编码器块" in told and "cpu-wide 比去掉块的高 10.0 个百分点" in told and "不知道" not in told
    elsewhere = trial("cpu-wide", [0.8] * 10, model_args={"num_layers": 0})
    elsewhere.data["train_images"] -= 1  # a trial on fewer images
    assert "不知道" in others.blocks_told(recipes, [trial("cpu-wide", [0.9] * 10), elsewhere])
    pair = [trial("cpu-wide", [0.9] * 10), bare]
    worth = others.blocks_worth("cpu-wide", pair)
    assert "有块的高 10.0 个百分点，种子太少，证据不足" in worth and "各 1 个种子" in worth and "各 1 个种子" in told
    second = trial("cpu-wide", [0.9] * 10)
    second.seed, second.key = 1, "another"
    assert "2 与 1 个种子" in others.blocks_worth("cpu-wide", [*pair, second])
    worse = [trial("cpu-wide", [0.7] * 10), bare]
    assert "有块的低 10.0 个百分点，种子太少，证据不足" in others.blocks_worth("cpu-wide", worse)
    assert "不知道" in others.blocks_worth("cpu-settled", pair)  # the control of another recipe says nothing of it
    assert "cpu-settled（30 轮）还没有这样的对照" in others.blocks_told(
        recipes | {"cpu-settled（30 轮）": RECIPES["cpu-settled"]}, pair
    )
    alike = [trial("cpu-wide", [0.9] * 10), trial("cpu-wide", [0.9] * 10, model_args={"num_layers": 0})]
    assert "看不出" in others.blocks_worth("cpu-wide", alike) and "没有一处" in others.blocks_told(recipes, alike)


def trial(name, rights, **changes):
    """Return a run of benchmarks/trial.py with this share of each of ten classes of 100 images answered rightly."""
    recipe = RECIPES[name].but(**changes)
    labels = np.repeat(np.arange(10), 100)
    wrong = np.concatenate([np.arange(100) >= 100 * right for right in rights])
    data = {
        "name": others.PROXY,
        "train_images": sum(TRAIN_COUNTS) - 1000,
        "test_images": 1000,
        "class_names": "ABCDEFGHIJ",
    }
    return SimpleNamespace(
        name=name, epochs=recipe.epochs, recipe=recipe, failed=None, data=data, labels=labels, correct=~wrong,
        predicted=np.where(wrong, (labels + 1) % 10, labels), confidence=np.full(1000, 0.5), accuracy=1 - wrong.mean(),
    )  # fmt: skip


def test_the_validation_split_ranks_whole_recipes_at_full_length_by_the_mean_of_classes():
    mild, varied = trial("cpu-mild", [0.9] * 10), trial("cpu-varied", [0.95] * 5 + [0.9] * 5)
    small, short, failed = (trial("cpu-pooled", [1] * 10) for _ in range(3))
    small.data["train_images"], failed.failed = 10_000, {"message": "NaN"}
    short = trial("cpu-pooled", [1] * 10, epochs=4)
    of_test = trial("cpu-pooled", [1] * 10)
    of_test.data["name"] = "course"
    found = others.on_validation([mild, small, short, failed, of_test, varied])
    assert list(found) == ["cpu-varied（40 轮）", "cpu-mild（16 轮）"] and found["cpu-mild（16 轮）"] is mild
    told = others.chosen_told(found, "cpu-varied（40 轮）")
    assert (
        "最高的是 cpu-varied（40 轮），92.5 %，best 就归它；其次是 cpu-mild（16 轮），90.0 %（两者准确率之差的判定是证据不足）。"
        in told
    )
    (gap,) = others.behind(found)
    assert gap.names == ("cpu-mild（16 轮）", "cpu-varied（40 轮）") and round(100 * gap.difference, 1) == -2.5
    assert "best 还是 cpu-mild（16 轮），尚未换成它" in others.chosen_told(found, "cpu-mild（16 轮）")
    assert others.chosen_told({"cpu-mild（16 轮）": mild}, "cpu-mild（16 轮）") == ""


def test_recipes_that_joined_after_the_published_best_are_told_until_the_validation_split_has_chosen():
    best, pooled, mild = (others.titled(RECIPES[name]) for name in ("cpu-varied", "cpu-pooled", "cpu-mild"))
    whole = {label: [run()] for label in (mild, best, pooled)}
    assert others.contenders(whole, best, {}) == [pooled, mild] and others.contenders({best: [run()]}, best, {}) == []
    assert others.contenders(whole, best, {mild: run()}) == [pooled, mild] and others.contenders(whole, "", {}) == []
    assert others.contenders(whole, best, {mild: run(), best: run()}) == [pooled]
    assert others.contenders(whole, best, dict.fromkeys((mild, best, pooled), run())) == []
    assert others.set_aside(whole) == pooled and others.set_aside({best: [run()]}) == ""  # whatever is judged since
    assert others.listed({mild: [run()] * 2}) == "cpu-mild（16 轮，2 个种子）的测试准确率是 70.0 ± 0.0 %"


def test_the_interval_covers_what_it_says():
    draw, n, true, theirs = np.random.RandomState(0), 3, 0.72, 0.70
    significant = 0
    for _ in range(2000):
        ours = draw.binomial(4870, draw.normal(true, 0.004, n)) / 4870
        said = draw.binomial(4870, theirs + 0.02) / 4870  # truly equal
        significant += "区间不含 0" in others.against(list(ours), {"乙": said}, "甲")
    assert significant / 2000 < 0.05


def rung(label, seeds, right):
    """Return the runs of a rung of the ladder: ``right`` of 1,000 images, others in every seed."""
    recipe = dict(CPU_LADDER)[label]
    for seed in range(seeds):
        made = run(name=recipe.name, seed=seed, epochs=recipe.epochs)
        made.recipe, made.correct = recipe, np.random.RandomState(seed).permutation(1000) < right
        made.accuracy = float(made.correct.mean())
        yield made


def test_a_step_of_the_ladder_is_compared_with_the_one_right_below_it():
    labels = [label for label, _ in CPU_LADDER]
    runs = [*rung(labels[0], 3, 500), *rung(labels[1], 3, 700), *rung(labels[2], 3, 600)]
    runs += [*rung(labels[4], 3, 600), *rung(labels[5], 2, 900)]
    rungs = others.climbed(others.on_whole_data([*runs, run(name="vit")]))
    assert list(rungs) == [labels[i] for i in (0, 1, 2, 4, 5)]
    steps = others.gains(rungs)  # none over the rung that has no records
    assert [step.names for step in steps] == [(labels[i + 1], labels[i]) for i in (0, 1, 4)]
    assert [step.verdict for step in steps] == ["较高", "较低", "证据不足"]  # two seeds prove nothing
    said = others.gains_told(steps)
    assert re.search(
        r"显著提高.*“混合茎部”（\+20\.0 个百分点）；显著降低.*（−10\.0 个百分点）；种子少于 3 个、证据不足", said
    )
    more = others.gains({label: [*rung(label, 3, right)] for label, right in zip(labels[4:6], (600, 900), strict=True)})
    assert others.gains_told(more) == "显著提高了准确率的是“轮数增至 9”（+30.0 个百分点）。"
    less = others.gains(
        {label: [*rung(label, 3, right)] for label, right in zip(labels[8:10], (900, 600), strict=True)}
    )
    assert "轮数减至 8”（−30.0 个百分点）" in others.gains_told(less)
    assert others.gains_told([]) == "" and others.gains(others.climbed({})) == []
    alike = others.gains({labels[0]: [*rung(labels[0], 3, 500)], labels[1]: [*rung(labels[1], 3, 500)]})
    assert re.search(r"“混合茎部”（0\.0 个百分点）", others.gains_told(alike))


def test_rungs_speak_for_nothing_but_the_ladder():
    assert [others.is_rung(run(name=recipe.name)) for _, recipe in CPU_LADDER] == [True] * 5 + [False] * 7
