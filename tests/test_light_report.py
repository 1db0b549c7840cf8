"""What section 2.4 says and draws: verdicts on losses, pictures of surviving patches, its table of recipes."""

import dataclasses
import itertools
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import toy

from labreport import show, stats
from labreport.analysis import assess
from labreport.analysis.kernels import Row
from labreport.figures import light as figures
from vitlib.cost import count_on
from vitlib.light.recipes import CHILD, DISTILLED, LIGHT, METHODS, pruned
from vitlib.models import count, create_model
from vitlib.plans import PROFILES, Entry
from vitlib.recipes import BEST, VIT, recipe_named


@pytest.fixture(autouse=True)
def chinese_figures():
    with plt.rc_context():
        show.use_chinese()
        yield
        plt.close("all")


def runs(accuracy, images=4000, seeds=3):
    """Made-up answers of some seeds: the first images right, a few others by chance."""
    return [np.arange(images) < images * accuracy + seed for seed in range(seeds)]


@pytest.mark.parametrize(
    ("accuracy", "seeds", "word"),
    [(0.899, 3, assess.KEEPS), (0.905, 3, assess.KEEPS), (0.89, 3, assess.LOSES), (0.899, 2, assess.FEW)],
)
def test_a_clear_loss_is_a_matter_of_mean_and_bound(accuracy, seeds, word):
    assert assess.keeps_accuracy(stats.compare(runs(accuracy, seeds=seeds), runs(0.9))) == word


def test_a_small_mean_with_a_wide_interval_is_no_proof():
    generator = np.random.default_rng(0)
    noisy, base = ([generator.random(300) < 0.9 for _ in range(3)] for _ in range(2))
    comparison = stats.compare(noisy, base)
    assert abs(comparison.difference) < 0.03 and comparison.low < -assess.WORST
    assert comparison.high > 0 and assess.keeps_accuracy(comparison) == assess.OPEN


def test_a_loss_that_holms_correction_leaves_open_is_no_loss():
    alone = stats.compare(runs(0.89), runs(0.9))
    among = dataclasses.replace(alone, p=0.06, holm=True)
    assert alone.high < 0 and assess.keeps_accuracy(alone) == assess.LOSES
    assert among.high < 0 and assess.keeps_accuracy(among) == assess.OPEN


def test_variants_of_the_same_networks_are_compared_seed_by_seed():
    generator = np.random.default_rng(0)
    base = [generator.random(2000) < share for share in (0.6, 0.7, 0.8)]  # a seed's luck, which its variants share
    changed = [np.where(np.arange(2000) % 100 == 0, False, seed) for seed in base]
    table = {"变体": changed, "基线": base, "照旧": base}
    paired, apart = assess.variants(table, "基线"), stats.compare_table(table, "基线")
    assert [row.names for row in paired] == [row.names for row in apart] == [("变体", "基线"), ("照旧", "基线")]
    assert paired[0].difference == pytest.approx(apart[0].difference) and paired[0].seeds == (3, 3)
    assert paired[0].high - paired[0].low < (apart[0].high - apart[0].low) / 10
    assert paired[0].verdict == "等价"
    assert apart[0].verdict == "证据不足" and paired[1].identical and all(row.holm for row in paired)
    alone = {name: seeds[:1] for name, seeds in table.items()}
    for one, other in zip(assess.variants(alone, "基线"), stats.compare_table(alone, "基线"), strict=True):
        assert np.allclose((one.difference, one.low, one.high), (other.difference, other.low, other.high))
        assert (one.names, one.seeds, one.identical, one.verdict) == (
            other.names, other.seeds, other.identical, other.verdict,
        )  # fmt: skip


def test_what_set_out_from_the_bases_runs_is_compared_with_them_seed_by_seed():
    generator, images = np.random.default_rng(0), np.arange(1000)
    start = VIT.but(epochs=2)

    def trained(recipe, seed, correct):
        data = {"fingerprint": "f"}
        key = recipe.key(seed, "f")
        return SimpleNamespace(recipe=recipe, seed=seed, key=key, data=data, correct=correct)

    lucks = (0.6, 0.7, 0.8)
    base = [trained(start, seed, generator.random(1000) < luck) for seed, luck in enumerate(lucks)]
    tuned = start.but(name="tuned", init_from=start, transfer="all")
    onward = [trained(tuned, run.seed, run.correct & (images % 100 > 0)) for run in base]
    apart = [trained(start.but(name="apart"), run.seed, run.correct & (images % 100 > 0)) for run in base]
    assert assess.onward(onward, base) == list(zip(onward, base, strict=True))
    assert assess.onward(apart, base) == assess.onward(base, base) == assess.onward(onward, base[:2]) == []
    paired, alone = assess.versus({"基线": base, "再训练": onward, "另训练": apart}, "基线")
    assert (paired.names, alone.names) == (("再训练", "基线"), ("另训练", "基线"))
    assert paired.difference == pytest.approx(alone.difference) and paired.holm and alone.holm
    assert paired.high - paired.low < (alone.high - alone.low) / 10


def test_outcomes_are_told_apart_and_one_loss_refutes_that_nothing_is_lost():
    judged = {"a": assess.KEEPS, "b": assess.OPEN, "c": assess.KEEPS, "d": assess.FEW}
    assert assess.told_outcomes(judged) == (
        "达标的有：a、c。未能证明没有明显的损失（差异不显著）的有：b。种子少于 3 个、证据不足的有：d。"
    )
    assert assess.unchanged(judged) == assess.unchanged({}) == "证据不足"
    assert assess.unchanged({"a": assess.KEEPS}) == "成立"
    assert assess.unchanged(judged | {"e": assess.LOSES}) == "不成立"


def test_what_all_share_is_said_once():
    assert [assess.told_each(words) for words in (["更慢"], ["更慢"] * 2, ["更慢", "更快"], ["甲", "乙", "甲"])] == [
        "更慢", "都更慢", "前者更慢，后者更快", "依次是甲、乙、甲",
    ]  # fmt: skip
    assert assess.JUDGED.keys() == assess.OUTCOMES.keys()


def test_duels_are_told_without_those_that_nobody_won():
    def duel(a, b, name):
        return stats.compare(runs(a), runs(b), (name, "小"))

    won, lost, even = duel(0.9, 0.8, "甲"), duel(0.8, 0.9, "乙"), duel(0.9, 0.899, "丙")
    assert assess.told_duels([even, even]) == "2 对都分不出高下（差是 +0.1 个百分点）。"
    told = assess.told_duels([won, lost, even])
    assert told == (
        "3 对里，显著更准的有 1 对：甲（对小，+10.0 个百分点）；显著更差的有 1 对：乙（对小，−10.0 个百分点）；"
        "其余 1 对分不出高下（差是 +0.1 个百分点）。"
    )
    assert "其余" not in assess.told_duels([won]) and "显著更差" not in assess.told_duels([won])


def test_runs_of_one_machine_and_format_share_a_letter():
    def run(device, dtype):
        return SimpleNamespace(device=device, machine={"dtype": dtype, "threads": 1})

    marks, words = assess.trained_on(
        {
            "甲": [run("x", "float32")] * 2,
            "乙": [run("x", "bfloat16"), run("x", "float32")],
            "丙": [run("y", "float32")],
        }
    )
    assert marks == {"甲": "A", "乙": "A、B", "丙": "C"}
    assert words == "A 是 x、float32、1 个线程，B 是 x、bfloat16、1 个线程，C 是 y、float32、1 个线程"


def test_operations_that_did_not_become_time_are_told_by_circumstance():
    behind, ahead, unsure, none = (0.5, 0.6, 0.7), (0.5, 0.3, 0.4), (0.5, 0.4, 0.6), (0.5, np.nan, np.nan)
    assert assess.told_behind({"一": [behind, behind], "多": [unsure, none]}) == (
        "一 时，2 个全都如此；多 时，一个也不能断定（计算量的比例在延迟的区间之内，或者没有区间）。"
        "可见一 时，省下的运算没有全部变成时间。"
    )
    assert assess.told_behind({"一": [behind, ahead, unsure]}).startswith(
        "一 时，1 个如此，1 个相反，延迟减少得更多，1 个不能断定。"
    )
    assert "可见" not in assess.told_behind({"一": [unsure]})


def test_what_was_cut_short_or_left_out_is_seen_in_the_runs_and_not_in_the_profile():
    entries = [Entry(name, VIT.but(name=name, epochs=9), 1) for name in ("full", "short", "absent")]
    made = {"full": [SimpleNamespace(epochs=9)], "short": [SimpleNamespace(epochs=9), SimpleNamespace(epochs=4)]}
    assert assess.cut_short(made, entries) == (["short（4 轮，配方是 9 轮）"], ["absent"])


def test_work_in_a_batch_is_set_by_its_busiest_image():
    torch.manual_seed(0)
    halting = create_model("a_vit", **{**toy.TINY, "num_layers": 3}).eval()
    images = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        halting.blocks[0].ffn.fc2.bias[0] = 2.0  # some tokens halt after the first block
        depths = halting.depths(images).sum(1)
    assert depths.min() < depths.max()
    assert count_on(halting, images) < assess.flops_together(halting, images) < count(halting).flops
    plain = create_model("vit", **toy.TINY).eval()
    assert assess.flops_together(plain, images) == count(plain).flops


def test_patches_with_detail_are_told_from_flat_ones():
    images = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    images[:, :, ::2, :4] = 200  # detail in the left half only
    left, right = torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    assert [assess.contrast(images, shares.expand(2, -1), 4) for shares in (left, right)] == pytest.approx([2.0, 0.0])


def test_every_recipe_can_be_had_by_name_and_starts_from_its_base():
    assert len({label for label, _, _ in METHODS}) == len(METHODS)
    for _, recipe, _ in METHODS:
        assert recipe_named(recipe.name) is recipe
        if recipe.transfer == "all":
            assert recipe.init_from in (VIT, DISTILLED) and recipe.teacher in (VIT, BEST)
            assert PROFILES["quick"].fit(recipe).epochs == 1
            assert PROFILES["quick"].fit(recipe).init_from.epochs == dict(PROFILES["quick"].epochs)["vit"]


def test_the_light_models_are_as_light_as_they_claim():
    def cost(recipe):
        with torch.device("meta"):
            return count(create_model(recipe.model, **recipe.model_args))

    best, child, light = map(cost, (BEST, CHILD, LIGHT))
    assert child.params <= best.params / 4 and light.flops <= best.flops / 4
    assert light.params <= best.params * 4 / 8  # int8: a byte a weight, and an eighth of best's four
    blocks = [cost(recipe).params for recipe in (VIT, pruned(30), pruned(50), pruned(70))]
    assert [round(1 - left / blocks[0], 1) for left in blocks[1:]] == [0.3, 0.5, 0.7]


def test_pictures_are_shrunk_before_the_model_sees_them():
    model = create_model("vit", **toy.TINY).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(assess.smaller_pictures(model, 32)(images), model(images))
        assert not torch.allclose(assess.smaller_pictures(model, 16)(images), model(images))


def test_patches_fade_as_their_share_falls():
    images = np.full((1, 3, 8, 8), 100, np.uint8)
    painted = figures.shaded_patches(images, np.array([[1.0, 0.5, 0.0, 1.0]]), scale=2)
    assert painted.shape == (1, 3, 16, 16) and painted.dtype == np.uint8
    corners = [int(painted[0, 0, y, x]) for y in (0, 15) for x in (0, 15)]
    assert corners[0] == corners[3] == 100 < corners[1] < corners[2] < 255


MODELS = pd.DataFrame(
    {
        "label": ["大", "小", "慢", "大（int8）", "另"],
        "family": ["大", "大", "大", "大", "另"],
        "accuracy": [0.9, 0.85, 0.8, 0.89, 0.7],
        "seconds": [0.02, 0.01, 0.03, 0.008, 0.02],
        "bytes": [8e6, 1e6, 4e6, 2e6, 8e6],
        "origin": ["", "", "", "大", ""],
    }
)


def test_the_tradeoff_shows_every_family_its_models_and_its_front():
    fig = figures.tradeoff(MODELS, ["大"])
    one, other = fig.axes
    discs = one.collections
    assert [disc.get_offsets()[0].tolist() for disc in discs] == [[20, 90], [10, 85], [30, 80], [8, 89]]
    assert discs[0].get_sizes()[0] == 120 and discs[1].get_sizes()[0] == pytest.approx(15)
    assert len(discs[0].get_facecolor()) == 0 and len(discs[1].get_facecolor()) == 1  # the baseline is hollow
    assert one.lines[0].get_xydata().tolist() == [[8, 89], [20, 90]]
    assert [text.get_text() for text in one.texts] == ["", "1", "2", "3", "4"]  # the first is the arrow to int8
    assert [text.get_text() for text in other.get_legend().texts] == ["1 另"]
    latin = figures.tradeoff(MODELS.replace({"family": {"另": "小 ViT"}}), ["大"])
    assert latin.axes[1].get_legend().get_title().get_text() == "小 ViT 一组"


def test_the_front_takes_the_better_of_two_trainings_of_a_network():
    twins = pd.DataFrame({"label": ["差", "好"], "accuracy": [0.8, 0.9], "seconds": [0.01, 0.01]})
    assert figures.front(twins, "seconds", "accuracy")["label"].tolist() == ["好"]
    fig = figures.tradeoff(twins.assign(family="大", bytes=1e6, origin=""))
    paths = [disc.get_paths()[0].vertices.shape for disc in fig.axes[0].collections]
    assert paths[0] != paths[1]  # of one place, so of two shapes


def test_shares_have_a_row_a_model_and_a_mark_a_measure():
    rows = [("小", "计算量", 0.5, np.nan, np.nan), ("小", "延迟", 0.8, 0.7, 0.9), ("大", "计算量", 1.2, np.nan, np.nan)]
    ax = figures.shares(pd.DataFrame(rows, columns=["label", "measure", "share", "low", "high"])).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["小", "大"]
    assert [mark.lines[0].get_xdata().tolist() for mark in ax.containers] == [[50, 120], [80]]
    assert ax.get_xlim()[0] == 0


def test_numbers_of_models_that_lie_together_do_not_meet():
    near = {
        "label": list("甲乙丙丁"),
        "accuracy": [0.9, 0.902, 0.899, 0.6],
        "bytes": [1e6] * 4,
        "family": "甲",
        "origin": "",
    }
    fig = figures.tradeoff(pd.DataFrame(near | {"seconds": [0.01, 0.0103, 0.0101, 0.1]}))
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_kernels_that_did_not_run_are_not_drawn():
    ran = [Row("逐步计算", n, n / 1e6, n / 2e6, n / 5e5, 9, n * 1e3, "aten::softmax") for n in (64, 256)]
    fig = figures.kernels([*ran, Row("xFormers", 64, reason="无")])
    band = fig.axes[0].collections[-1]
    assert {(64, 0.032), (64, 0.128), (256, 0.512)} <= {
        (x, round(y, 6)) for x, y in band.get_paths()[0].vertices.tolist()
    }
    assert [text.get_text() for text in fig.legends[0].texts] == ["逐步计算"]
