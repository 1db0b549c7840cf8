"""What section 2.2 draws and measures inside the model."""

from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from labreport import metrics, show
from labreport.analysis import mechanism, shapley
from labreport.figures import imbalance as figures_imbalance
from labreport.figures import panels
from vitlib.errors import UserError
from vitlib.models import create_model


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def run(seed, counts=(60, 30, 10), sure=0.7):
    source = np.random.RandomState(seed)
    labels = np.repeat(np.arange(len(counts)), 100)
    right = source.random_sample(len(labels)) < np.array([0.9, 0.6, 0.3])[labels]
    names = [f"类{c}" for c in range(len(counts))]
    predicted = np.where(right, labels, (labels + 1) % len(counts))
    data = {"class_names": names, "class_counts": counts}
    return SimpleNamespace(labels=labels, predicted=predicted, confidence=np.full(len(labels), sure), data=data)


def test_classes_are_grouped_by_thirds_of_their_size():
    groups = metrics.class_groups((5, 50, 20, 30, 10, 40, 1))
    assert {name: group.tolist() for name, group in groups.items()} == {
        "多数类": [1, 5],
        "居中的类": [3, 2, 4],
        "少数类": [0, 6],
    }
    assert metrics.class_groups((3, 9))["居中的类"].size == 0


def test_recall_of_groups_is_the_mean_over_their_classes():
    runs = [run(seed) for seed in range(3)]
    (row,) = metrics.group_table({"甲": runs}).to_dict("records")
    recalls = [[100 * np.mean(r.predicted[r.labels == c] == c) for r in runs] for c in range(3)]
    for name, recall in zip(("多数类 / %", "居中的类 / %", "少数类 / %"), recalls, strict=True):
        assert row[name] == f"{np.mean(recall):.1f} ± {np.std(recall, ddof=1):.1f}"


def test_shares_stand_in_percentage_points_with_intervals_from_three_seeds_on():
    table = np.random.RandomState(0).normal(0.1, 0.3, (3, 200))
    values = {"预训练": shapley.contrast(table, ("甲", "乙")), "增强": shapley.contrast(table[:1], ("甲", "乙"))}
    (ax,) = figures_imbalance.shares({"现代 ViT": values}).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["预训练", "增强"]
    points = [container.lines[0].get_xdata()[0] for container in ax.containers]
    assert points == pytest.approx([100 * table.mean(), 100 * table[:1].mean()])
    bars = [np.ptp(container.lines[2][0].get_segments()[0][:, 0]) for container in ax.containers]
    assert bars[0] > 1 and bars[1] == 0


def test_reliability_pools_the_seeds():
    runs = [run(seed) for seed in range(2)]
    (ax,) = figures_imbalance.reliability({"甲": runs}).axes
    right = np.mean([np.mean(r.labels == r.predicted) for r in runs])
    assert ax.lines[1].get_xdata() == pytest.approx([70]) and ax.lines[1].get_ydata() == pytest.approx([100 * right])


def test_a_method_keeps_its_colour_in_both_panels_and_gaps_stay_open():
    ours = pd.DataFrame({10: {"甲": 80.0, "乙": 82.0}, 100: {"甲": 50.0, "乙": np.nan}})
    fig = figures_imbalance.against_factor({"本项目": ours, "已发表": ours.loc[["乙"]]}, "甲", {}, {})
    left, right = ({line.get_label(): line for line in ax.lines if line.get_label() in ours.index} for ax in fig.axes)
    assert [ax.get_title() for ax in fig.axes] == ["本项目", "已发表"]
    assert len(left["乙"].get_xdata()) == 1 and len(left["甲"].get_xdata()) == 2
    assert left["乙"].get_color() == right["乙"].get_color() != left["甲"].get_color()


def test_points_of_few_seeds_are_hollow_and_collapsed_ones_are_crosses():
    ours = pd.DataFrame({10: {"甲": 80.0, "乙": 82.0}, 100: {"甲": 50.0, "乙": 40.0}})
    few, fallen = {("甲", 100), ("乙", 10), ("乙", 100)}, {("乙", 100)}
    fig = figures_imbalance.against_factor({"本项目": ours, "已发表": ours}, "甲", {"本项目": few}, {"本项目": fallen})
    for ax, hollow, crosses in zip(fig.axes, ({(100, 50), (10, 82)}, set()), ({(100, 40)}, set()), strict=True):
        points = [line for line in ax.lines if line.get_marker() not in ("None", "")]
        assert len(points) == 4
        at = {line: (line.get_xdata()[0], line.get_ydata()[0]) for line in points}
        assert {at[line] for line in points if line.get_markerfacecolor() == "white"} == hollow
        assert {at[line] for line in points if line.get_marker() == "x"} == crosses


def test_many_methods_share_rows_of_six_with_the_base_and_differ_in_each():
    methods = list("甲乙丙丁戊己庚辛壬癸子丑")
    fig = figures_imbalance.against_factor({"本项目": pd.DataFrame({100: [50.0] * 12}, methods)}, "甲", {}, {})
    keys = [ax.get_legend().legend_handles for ax in fig.axes]
    assert ["".join(key.get_label() for key in row) for row in keys] == ["甲乙丙丁戊己庚", "甲辛壬癸子丑"]
    for ax, row in zip(fig.axes, keys, strict=True):
        points = [line for line in ax.lines if line.get_marker() not in ("None", "")]
        assert len({line.get_xdata()[0] for line in points}) == len(points) == len(row)  # side by side at one factor
        assert [(p.get_color(), p.get_marker()) for p in points] == [(k.get_color(), k.get_marker()) for k in row]
        assert len({key.get_marker() for key in row}) == len(row)
    assert len({key.get_color() for row in keys for key in row}) == len(methods)  # a colour is one method's throughout


def test_classes_stand_by_falling_size_and_likeness_in_bins():
    (ax,) = figures_imbalance.by_class(
        {"甲": np.array([1.0, 2.0, 3.0])}, ["a", "b", "c"], np.array([5, 9, 7]), "y"
    ).axes
    assert ax.lines[0].get_ydata().tolist() == [2.0, 3.0, 1.0]
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0 and "验证" in ax.get_xlabel()
    apart = np.arange(100.0)
    (ax,) = figures_imbalance.likeness({"甲": mechanism.in_bins(apart, -apart)}).axes
    assert ax.lines[0].get_xdata() == pytest.approx(np.arange(4.5, 100, 10))
    assert ax.lines[0].get_ydata() == pytest.approx(-np.arange(4.5, 100, 10))


def test_doses_stand_in_order_with_a_point_a_seed():
    accuracy = {"训练": {"无": [0.9, 0.8], "强": [0.6]}, "测试": {"无": [0.5, 0.6], "强": [0.7]}}
    (ax,) = figures_imbalance.doses(accuracy).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["无", "强"]
    lines = {line.get_label(): line.get_ydata() for line in ax.lines if line.get_label() in accuracy}
    assert lines["训练"] == pytest.approx([85, 60]) and lines["测试"] == pytest.approx([55, 70])
    assert sum(len(line.get_xdata()) for line in ax.lines) == 4 + 6  # both lines, and six seeds


def test_runs_can_be_browsed_and_a_missing_one_is_told():
    show.use_chinese()
    trained, free = run(0), run(1)
    for it, epochs in ((trained, 3), (free, 0)):
        it.seed, it.name, it.accuracy = 0, "甲", float(np.mean(it.labels == it.predicted))
        it.recipe, it.failed = SimpleNamespace(epochs=epochs), None
        it.history = {"epoch": np.arange(1, epochs + 1)} | {
            name: np.linspace(0.1, 0.5, epochs) for name in ("train_accuracy", "val_accuracy")
        }
    box = panels.browse_runs({("原数据", "交叉熵"): [trained], ("IF 100", "事后修正"): [free]})
    menus, told, curves, confusion = box.children
    data, remedy, _ = menus.children
    assert [menu.value for menu in menus.children] == ["原数据", "交叉熵", 0]
    assert "测试准确率" in told.value and all(bytes(it.value).startswith(b"\x89PNG") for it in (curves, confusion))
    first = bytes(confusion.value)
    data.value = "IF 100"
    assert "没有这样的运行" in told.value and curves.layout.display == confusion.layout.display == "none"
    remedy.value = "事后修正"
    assert "没有曲线" in told.value and curves.layout.display == "none" and bytes(confusion.value) not in (b"", first)
    assert not plt.get_fignums()
    with pytest.raises(UserError, match="没有可以挑选的运行"):
        panels.browse_runs({})


def test_likeness_of_equal_patches_is_one_and_pairs_are_counted_once():
    tiny = {"d_model": 8, "num_heads": 2, "num_layers": 1, "ffn_hidden_channels": 8, "dropout": 0.0}
    model = create_model("original", img_size=8, classifier=False, **tiny)
    images = torch.randint(0, 255, (3, 3, 8, 8), dtype=torch.uint8)
    images[0, :, :4, 4:] = images[0, :, :4, :4]  # its first two patches are the same
    apart, cosine = mechanism.patch_likeness(model, images)
    assert apart.shape == cosine.shape == (3 * 4 * 3 // 2,)
    assert apart[0] == pytest.approx(0, abs=1e-3) and apart[1] > 0.1 and abs(cosine).max() <= 1 + 1e-5


def test_a_class_gradient_is_that_of_its_images_alone():
    tiny = {"d_model": 8, "num_heads": 2, "num_layers": 1, "ffn_hidden_channels": 8, "num_classes": 3, "img_size": 8}
    model = create_model("vit", **tiny)
    images = torch.randint(0, 255, (6, 3, 8, 8), dtype=torch.uint8)
    norms = mechanism.class_gradients(model, images, torch.tensor([0, 0, 0, 0, 2, 2]), 3, "half")
    assert np.isnan(norms[1]) and norms[0] > 0
    pixels = images[4:].float() * 2 / 255 - 1
    torch.nn.functional.cross_entropy(model(pixels), torch.tensor([2, 2])).backward()
    total = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert norms[2] == pytest.approx(total**0.5, rel=1e-4)
