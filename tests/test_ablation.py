"""What 2.3 concludes: the sentences follow from the records, and say something else when the records do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from labreport.analysis.ablation import (
    PRINTED,
    Verdicts,
    answer,
    brief,
    by_knob,
    chance_of_lead,
    conclude,
    families,
    steps,
    training_bytes,
    value_text,
)
from vitlib import knobs
from vitlib.errors import UserError
from vitlib.models import ViT, create_model
from vitlib.plans import PROFILES, SECTIONS, TIERS, jobs, knob
from vitlib.sweep import H100_FLOPS, prices

IMAGES = 2000


def run(recipe, seed, accuracy, validation=None, flops=1.0, failed=None):
    """A made-up run: right on most of the same images in every run, on others by the seed."""
    rng = np.random.default_rng(1000 * seed + round(1e4 * accuracy))
    hard = np.linspace(0, 1, IMAGES)
    correct = hard < accuracy
    turned = rng.random(IMAGES) < 0.01
    correct = np.where(turned, ~correct, correct)
    curve = np.array([0.1, accuracy if validation is None else validation])
    return SimpleNamespace(
        recipe=recipe, seed=seed, correct=correct, accuracy=float(correct.mean()), flops=flops, failed=failed,
        history={"val_accuracy": curve},
    )  # fmt: skip


def study(seeds=3, **accuracy_by_layers):
    """Runs by label: the baseline with 6 blocks, and others."""
    out = {"原系统": [run(knobs.ORIGINAL, 0, 0.5)], "现代 ViT": []}
    for layers, accuracy in accuracy_by_layers.items():
        number = int(layers.removeprefix("blocks"))
        label = "现代 ViT" if number == 6 else f"块数 {number}"
        recipe = knobs.BASE if number == 6 else knobs.modern(num_layers=number)
        out[label] = [run(recipe, seed, accuracy, flops=float(number)) for seed in range(seeds)]
    return out


def test_the_sentence_names_the_winner_when_one_setting_is_better():
    (family,) = families(study(blocks1=0.60, blocks6=0.80)).values()
    said = conclude("块数", family, Verdicts())
    assert "按验证准确率选出的是块数 6（基线），它的测试准确率是 80." in said.replace("79.", "80.")
    assert "显著更低的是块数 1（低" in said and "等价" not in said and "分不出高下" not in said
    assert "没有被证明" not in said  # nothing but the baseline is left to recommend


def test_the_sentence_changes_by_itself_when_two_settings_tie():
    (family,) = families(study(blocks1=0.60, blocks2=0.80, blocks6=0.80)).values()
    said = conclude("块数", family, Verdicts())
    assert "；等价的是块数 2（" in said and "与块数 6（基线）相比，显著更低的是块数 1（" in said
    assert "没有被证明比基线更差的取值里，块数 2 最省，计算量是基线的 33 %，而且与基线等价" in said
    (dear,) = families(study(blocks1=0.60, blocks6=0.80, blocks12=0.80)).values()
    assert "没有被证明比基线更差的取值里，没有比基线更省的" in conclude("块数", dear, Verdicts())
    (better,) = families(study(blocks1=0.85, blocks6=0.80)).values()
    assert "块数 1 最省，计算量是基线的 17 %，准确率还更高" in conclude("块数", better, Verdicts())


def test_a_pair_has_one_verdict_wherever_it_is_told():
    (family,) = families(study(blocks1=0.60, blocks2=0.815, blocks6=0.80)).values()
    runs = {label: group for label, group in family.items()}
    base = runs.pop("块数 6（基线）")
    verdicts = Verdicts()
    noise = [(f"块数 6，第 {i} 组", [run(knobs.BASE, seed + 9 * i, 0.8) for seed in range(3)]) for i in range(1, 9)]
    table = verdicts.judge([((label, "现代 ViT"), group, base) for label, group in [*runs.items(), *noise]])
    (alone,) = Verdicts().judge([(("块数 2", "现代 ViT"), runs["块数 2"], base)])
    two, *_ = (test for test in table if test.names[0] == "块数 2")
    assert two.p > alone.p and two.holm
    against = verdicts.against_baseline(family)["块数 2"]
    assert (against.p, against.verdict) == (two.p, two.verdict) and against.names == ("块数 2", "块数 6（基线）")
    last = steps(family, verdicts)[-1]
    assert last.names == ("块数 6（基线）", "块数 2") and last.p == two.p
    assert (last.difference, last.low, last.high) == (-two.difference, -two.high, -two.low)


def test_the_answer_tells_what_each_knobs_ends_differ_in_and_cost():
    deep = study(blocks1=0.60, blocks6=0.80)
    (family,) = families(deep).values()
    assert answer({}, Verdicts()) == ["本次没有可以比较的旋钮。"]
    said, price = answer({"块数": family}, Verdicts())
    assert "基线相比（p 值经 Holm 校正），显著更低的是块数 1（低 " in said and "块数相差 6.0 倍" in price
    (tied,) = families(study(blocks1=0.80, blocks6=0.80)).values()
    assert "，等价的是块数 1（" in answer({"块数": tied}, Verdicts())[0]
    same = {label: [run(each.recipe, each.seed, 0.7) for each in runs] for label, runs in family.items()}
    assert "块数几乎不改变它" in answer({"块数": same}, Verdicts())[1]


def test_the_abstract_names_the_clearest_difference_and_the_knobs_that_show_none():
    (deep,), (tied,) = (families(study(blocks1=low, blocks6=0.80)).values() for low in (0.60, 0.80))
    (few,) = families(study(seeds=1, blocks1=0.60, blocks6=0.80)).values()
    said = brief({"块数": deep, "注意力头数": tied, knobs.COUPLED: deep}, Verdicts())
    assert said.startswith("块数 1 比 6（基线）低 ") and "差异显著；注意力头数两端的取值与基线等价" in said
    assert said.count("差异显著") == 1  # the coupled widths are left to the answer
    assert brief({"块数": few}, Verdicts()) == "种子少于 3 个，旋钮的好坏不作判断"
    assert brief({}, Verdicts()) == ""
    assert "另有 1 个两端的取值与基线差异显著" in brief({"块数": deep, "甲": deep}, Verdicts(), most=1)


def test_a_higher_mean_that_the_correction_took_back_is_not_called_unproved():
    (family,) = families(study(blocks1=0.807, blocks6=0.80)).values()
    verdicts = Verdicts()
    noise = [((f"甲 {i}", "乙"), *([run(knobs.BASE, seed + 9 * i + at, 0.8) for seed in range(3)] for at in (0, 300)))
             for i in range(1, 10)]  # fmt: skip
    verdicts.judge([(("块数 1", "块数 6"), family["块数 1"], family["块数 6（基线）"]), *noise])
    test = verdicts.against_baseline(family)["块数 1"]
    assert test.low > 0 and test.verdict == "证据不足"
    assert conclude("块数", family, verdicts).endswith("计算量是基线的 17 %，均值还更高，但校正后不显著。")


def test_a_lead_by_chance_is_likelier_the_smaller_it_is():
    assert chance_of_lead(0.0, 1.0, 4) == 1.0
    assert chance_of_lead(0.3, 1.0, 4) > chance_of_lead(1.0, 1.0, 4) > chance_of_lead(3.0, 1.0, 4)
    assert chance_of_lead(0.3, 1.0, 2) == pytest.approx(2 * norm.sf(0.3 / 2**0.5), abs=0.01)


def test_one_setting_of_one_seed_does_not_silence_the_others():
    runs = study(blocks1=0.60, blocks4=0.85, blocks6=0.80)
    runs["块数 4"] = runs["块数 4"][:1]
    (family,) = families(runs).values()
    said = conclude("块数", family, Verdicts())
    assert "选出的是块数 6（基线）" in said and "显著更低的是块数 1（低" in said  # though block 4's one seed is higher
    assert "种子少于 3 个、不作判断的是块数 4（高 4.9" in said
    words, _ = answer({"块数": family}, Verdicts())
    assert words.startswith("各旋钮两端的取值与基线相比") and "不作判断" not in words
    (few,) = families(study(seeds=1, blocks1=0.60, blocks6=0.80)).values()
    assert "注意力头数的种子少于 3 个，不作判断" in answer({"块数": family, "注意力头数": few}, Verdicts())[0]


def test_one_seed_never_decides():
    (family,) = families(study(seeds=1, blocks1=0.60, blocks6=0.80)).values()
    said = conclude("块数", family, Verdicts())
    assert "种子少于 3 个、不作判断的是块数 1（低" in said and "分不出" not in said and "只有 1 个种子" in said
    assert "显著" not in said and "最省" not in said  # nothing was shown, so nothing is recommended
    words, price = answer({"块数": family}, Verdicts())
    assert words == "种子少于 3 个，旋钮的好坏不作判断。" and "相差 6.0 倍" in price


def test_what_validation_chose_may_lose_on_the_test_images():
    runs = study(blocks1=0.60, blocks6=0.80)
    for each in runs["块数 1"]:
        each.history["val_accuracy"] = np.array([0.9])
    (family,) = families(runs).values()
    said = conclude("块数", family, Verdicts())
    assert "选出的是块数 1，" in said and "与块数 6（基线）相比，显著更低的是块数 1（低" in said


def test_failed_runs_are_named_and_left_out():
    runs = study(blocks1=0.60, blocks2=0.7, blocks6=0.80)
    runs["块数 1"][1].failed = {"message": "NaN"}
    (family,) = families(runs).values()
    assert "块数 1 有训练中止的运行，不参与比较" in conclude("块数", family, Verdicts())
    assert [step.names for step in steps(family, Verdicts())] == [("块数 6（基线）", "块数 2")]
    runs.pop("块数 2")
    (family,) = families(runs).values()
    assert conclude("块数", family, Verdicts()).endswith("没有两个可以比较的取值。")


def test_runs_are_grouped_by_the_one_argument_in_which_they_differ():
    labels = {"现代 ViT": knobs.BASE, "a": knobs.modern(norm="rms"), "b": knobs.modern(d_model=64),
              "c": knobs.modern(d_model=64, ffn_hidden_channels=128), "d": knobs.modern(d_model=512),
              "e": knobs.modern(d_model=64, num_layers=2), "f": knobs.modern(registers=2), "g": knobs.ORIGINAL,
              "h": knobs.modern(num_layers=1), "i": knobs.modern(layer_scale=0.1)}  # fmt: skip
    found = families({label: [run(recipe, 0, 0.5)] for label, recipe in labels.items()})
    assert {title: list(family) for title, family in found.items()} == {
        "嵌入维数": ["嵌入维数 64", "嵌入维数 256（基线）", "嵌入维数 512"],
        "块数": ["块数 1", "块数 6（基线）"],
        "归一化": ["归一化“RMS 归一化”", "归一化“层归一化”（基线）"],
        "嵌入维数（FFN 随之）": ["嵌入维数（FFN 随之）64", "嵌入维数（FFN 随之）256（基线）"],
        "layer_scale": ["layer_scale 0.1", "layer_scale None（基线）"],
        "registers": ["registers 0（基线）", "registers 2"],
        "嵌入维数、块数": ["嵌入维数 64、块数 2", "嵌入维数 256、块数 6（基线）"],
    }
    for title, values in {"嵌入维数（FFN 随之）": ["64", "256"], "嵌入维数、块数": ["64、2", "256、6"]}.items():
        assert [value_text(title, runs[0]) for runs in found[title].values()] == values
    assert families({"b": []}) == {}


def test_tables_list_settings_by_knob_and_value():
    recipes = {"原系统": knobs.ORIGINAL, "注意力头数 2": knobs.modern(num_heads=2), "现代 ViT": knobs.BASE,
               "注意力头数 1": knobs.modern(num_heads=1), "图像块大小 8": knobs.modern(patch_size=8)}  # fmt: skip
    runs = {label: [run(recipe, 0, 0.5)] for label, recipe in recipes.items()}
    assert list(by_knob(runs, "现代 ViT")) == ["现代 ViT", "图像块大小 8", "注意力头数 1", "注意力头数 2", "原系统"]
    del runs["现代 ViT"]
    assert list(by_knob(runs, "现代 ViT")) == list(runs)


def test_users_add_values_and_knobs_by_name():
    entry = knob("num_heads", 32)
    assert entry.label == "注意力头数 32" and entry.recipe.model_args["num_heads"] == 32
    assert entry.recipe.but(model_args={"num_heads": None}).spec() == knobs.BASE.spec()
    assert knob("registers", 2).label == "registers 2"
    both = knob("d_model+num_heads", [128, 2])
    assert both.label == "嵌入维数 128、注意力头数 2" and both.recipe.model_args["num_heads"] == 2
    with pytest.raises(UserError, match="num_heads"):
        knob("nun_heads", 2)
    with pytest.raises(UserError, match="2 个参数，而给了 1 个值"):
        knob("d_model+num_heads", [128])


def test_the_plan_holds_what_the_assignment_and_the_original_varied():
    labels = {entry.label: entry for entry in SECTIONS["2.3"]}
    assert len(labels) == len(SECTIONS["2.3"])
    for name, values in {"图像块大小": (2, 8, 16), "嵌入维数": (64, 128, 512, 1024), "注意力头数": (1, 2, 8, 16),
                         "块数": (1, 2, 4, 8, 12)}.items():  # fmt: skip
        assert {f"{name} {value}" for value in values} <= labels.keys()
    assert {name: set(by_value) for name, by_value in knobs.SETTINGS.items()} == {
        name: set(by_value) for name, by_value in PRINTED.items()
    }
    recipes = {entry.recipe.name for entry in SECTIONS["2.3"]}
    assert {r.name for by_value in knobs.SETTINGS.values() for r in by_value.values()} <= recipes
    for entry in SECTIONS["2.3"]:  # widths are changed with the feed-forward network held, but for the coupled ones
        args = entry.recipe.model_args
        assert args.get("ffn_hidden_channels", 512) == (2 * args["d_model"] if "FFN" in entry.label else 512)
        if "线性分类头" in entry.label:
            whole = labels[entry.label.replace("，线性分类头", "")].recipe
            assert entry.recipe.but(model_args={"head": None}).spec() == whole.spec()
    full = jobs("2.3", PROFILES["full"])
    price = prices(full, 35_580, H100_FLOPS)
    assert price[3] <= 25 * 60 and price[12] <= 12.5 * 60 and price.keys() <= TIERS.keys()


def test_memory_is_counted_from_what_the_backward_pass_needs():
    weights, kept = training_bytes(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU()), torch.randn(7, 3))
    assert weights == 16 * 20
    assert kept == 4 * (7 * 3 + 7 * 5)  # the input for the weight's gradient, the output for ReLU's
    with torch.device("meta"):
        small, large = (create_model("vit", d_model=32, num_layers=n) for n in (1, 2))
        one, two = (training_bytes(model, torch.empty(4, 3, 32, 32))[1] for model in (small, large))
        double = training_bytes(small, torch.empty(8, 3, 32, 32))[1]
    assert one < two < 2 * one and double == pytest.approx(2 * one, rel=0.02) and isinstance(small, ViT)
