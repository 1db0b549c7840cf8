"""Figures: what they draw is what the runs hold, nothing overlaps, bad input is refused."""

import itertools
from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from labreport import show
from labreport.figures import panels, pictures, plots
from vitlib.errors import UserError

NAMES = ("飞机", "汽车", "鸟", "猫", "鹿", "狗", "青蛙", "马", "船", "卡车")
COUNTS = (4435, 4189, 3065, 4191, 4513, 3717, 3513, 3249, 2685, 2023)


@pytest.fixture(autouse=True)
def chinese():
    with matplotlib.rc_context():
        show.use_chinese()
        yield
        plt.close("all")


def run(accuracy, seed, epochs=30, failed_at=None, names=NAMES, counts=COUNTS, monitored="val"):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(names)), 20).astype(np.uint8)
    right = rng.random(labels.size) < accuracy
    predicted = np.where(right, labels, (labels + 1) % len(names)).astype(np.uint8)
    epoch = np.arange(1, epochs + 1)
    history = {"epoch": epoch, "train_loss": 2 / epoch + seed / 100}
    history[f"{monitored}_accuracy"] = accuracy * epoch / epochs
    if failed_at:
        for name in ("train_loss", f"{monitored}_accuracy"):
            history[name] = np.where(epoch < failed_at, history[name], np.nan)
        predicted[:] = 0
    return SimpleNamespace(
        history=history,
        labels=labels,
        predicted=predicted,
        confidence=np.full(labels.size, 0.5, np.float32),
        accuracy=float((labels == predicted).mean()),
        failed={"step": 7} if failed_at else None,
        data={"class_names": names, "class_counts": counts},
    )


def runs():
    return {
        "原模型（普通训练）": [run(0.5, seed) for seed in range(3)],
        "ViT": [run(0.8, seed) for seed in range(3)],
        "原模型（图像块 16 × 16）": [run(0.1, 9, failed_at=11)],
    }


def assert_no_text_overlaps(fig):
    """No two texts of the drawn figure touch, and none leaves it (the legend's own layout included)."""
    fig.canvas.draw()
    # Tick labels outside the axis limits exist but are not drawn.
    beyond = {
        tick.label1 for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }  # fmt: skip
    texts = [text for text in fig.findobj(plt.Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if text not in beyond]
    renderer = fig.canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    boxes = [(text, box) for text, box in boxes if fig.bbox.padded(1).overlaps(box)]
    assert len(boxes) > 3
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), f"{one!r} runs into {other!r}"


def legend_words(fig):
    legend = fig.legends[0]
    return [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())]


def test_curves_draw_the_mean_and_the_band_from_lowest_to_highest_seed():
    group = [run(0.5, seed) for seed in range(3)]
    fig = plots.curves({"ViT": group}, "train_loss")
    ax = fig.axes[0]
    values = np.array([each.history["train_loss"] for each in group])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), values.mean(axis=0))
    band = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(np.unique(band[np.isclose(band[:, 0], 1), 1]), [values[0, 0], values[2, 0]])
    assert "最小值至最大值" in legend_words(fig)[0]


def test_curves_are_in_percent_and_named_after_their_set():
    fig = plots.curves({"a": [run(0.5, 0)], "b": [run(0.8, 0)]}, ["train_loss", "accuracy"])
    assert [ax.get_ylabel() for ax in fig.axes] == ["训练损失", "验证准确率 / %"]
    assert fig.axes[1].lines[1].get_ydata()[-1] == pytest.approx(80)
    assert legend_words(fig) == ["", "a", "b"]  # one seed: no band to explain
    mixed = plots.curves({"a": [run(0.5, 0)], "b": [run(0.8, 0, monitored="test")]})
    assert mixed.axes[0].get_ylabel() == "验证或监测准确率 / %"
    only_test = plots.curves({"b": [run(0.8, 0, monitored="test")]})
    assert only_test.axes[0].get_ylabel() == "测试准确率 / %（仅监测）"


def test_curves_differ_in_dash_and_not_in_colour_alone():
    fig = plots.curves({str(i): [run(0.1 * i, 0)] for i in range(1, 7)})
    drawn = [line for line in fig.axes[0].lines if len(line.get_xdata())]
    assert len({str(line._unscaled_dash_pattern) for line in drawn}) == len(drawn) == 6


def test_a_failed_run_ends_in_a_cross_at_its_last_finite_epoch():
    fig = plots.curves(runs(), "accuracy")
    crosses = [line for line in fig.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 1
    assert crosses[0].get_xdata()[0] == 10
    assert crosses[0].get_ydata()[0] == pytest.approx(100 * 0.1 * 10 / 30)
    assert "出现非有限值，训练中止" in legend_words(fig)


def test_curves_without_data_are_refused():
    with pytest.raises(UserError, match="val_f1"):
        plots.curves(runs(), "val_f1")
    with pytest.raises(UserError, match="accuracy"):
        plots.curves({"a": [run(0.1, 0, failed_at=1)]})


def test_confusion_is_the_seed_mean_in_percent_of_the_row():
    group = [run(0.5, seed) for seed in range(2)]
    fig = plots.confusion(group)
    percent = fig.axes[0].collections[0].get_array().reshape(10, 10)
    np.testing.assert_allclose(percent.sum(axis=1), 100)
    recall = np.mean([[(e.predicted == e.labels)[e.labels == c].mean() for c in range(10)] for e in group], 0)
    np.testing.assert_allclose(np.diag(percent), 100 * recall)
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == list(NAMES)
    written = {text.get_text() for text in fig.axes[0].texts}
    assert f"{percent[0, 0]:.0f}" in written
    np.testing.assert_allclose(
        plots.confusion(group[0]).axes[0].collections[0].get_array(),
        plots.confusion(group[:1]).axes[0].collections[0].get_array(),
    )


def test_confusion_difference_is_signed_and_centred_on_zero():
    fig = plots.confusion_difference([run(0.9, 0)], [run(0.4, 1)])
    mesh = fig.axes[0].collections[0]
    assert (np.diag(mesh.get_array().reshape(10, 10)) > 0).all()
    assert mesh.norm.vmin == -mesh.norm.vmax
    assert any(text.get_text().startswith("−") for text in fig.axes[0].texts)


def test_per_class_recall_stands_by_falling_class_size():
    fig = plots.per_class(runs())
    ax = fig.axes[0]
    ticks = [text.get_text() for text in ax.get_xticklabels()]
    assert ticks[0] == "鹿\n4,513" and ticks[-1] == "卡车\n2,023"
    drawn = {round(y) for line in ax.lines for y in line.get_ydata() if np.isfinite(y)}
    assert {0, 100} <= drawn  # the failed run: everything is the first class


def test_class_counts_shows_every_number():
    test = SimpleNamespace(labels=torch.arange(10).repeat_interleave(487))
    data = SimpleNamespace(class_names=NAMES, class_counts=COUNTS, test=test)
    ax = plots.class_counts(data).axes[0]
    assert {f"{count:,}" for count in COUNTS} | {"487"} == {text.get_text() for text in ax.texts}


def test_accuracy_bars_show_an_interval_only_for_three_seeds():
    groups = {"三": [run(0.5, s) for s in range(3)], "二": [run(0.5, s) for s in range(2)]}
    groups["败"] = [run(0.1, 9, failed_at=11)]
    fig = plots.accuracy_bars(groups)
    ax = fig.axes[0]
    spans = [np.ptp(container[2][0].get_segments()[0][:, 0]) for container in ax.containers]
    values = [100 * each.accuracy for each in groups["三"]]
    seeds = 4.302653 * np.std(values, ddof=1) / 3**0.5
    images = 1.959964 * (np.mean(values) * (100 - np.mean(values)) / len(groups["三"][0].labels)) ** 0.5
    assert spans[0] == pytest.approx(2 * np.hypot(seeds, images), rel=1e-5)
    assert spans[1:] == [0, 0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["三", "二", "败（训练中止）"]


def images(count, seed=0):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_predictions_are_told_apart_without_colour():
    fig = plots.predictions(images(3), [0, 1, 2], [0, 2, 2], [0.9, 0.51, 1.0], NAMES)
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == ["✓ 飞机 90 %", "✗ 鸟 51 %\n真实：汽车", "✓ 鸟 100 %"]
    frames = [ax.spines["left"] for ax in fig.axes]
    assert frames[0].get_linestyle() != frames[1].get_linestyle() == (0, (2, 1.5))
    assert to_rgb(frames[0].get_edgecolor()) == to_rgb(frames[2].get_edgecolor())
    np.testing.assert_array_equal(fig.axes[1].images[0].get_array(), images(3)[1].permute(1, 2, 0).numpy())


def test_attention_overlays_each_map_scaled_to_its_maximum():
    maps = np.zeros((2, 4))
    maps[0, 3], maps[1] = 0.2, [0.1, 0.2, 0.3, 0.4]
    fig = plots.attention(images(1)[0], maps, ["第 1 层", "第 2 层"])
    assert [ax.get_title() for ax in fig.axes[:3]] == ["图像", "第 1 层", "第 2 层"]
    corners = np.ix_([0, -1], [0, -1])  # at the image's own 8 x 8 pixels the maps run smoothly from patch to patch
    np.testing.assert_allclose(fig.axes[1].images[1].get_array()[corners], [[0, 0], [0, 1]])
    np.testing.assert_allclose(fig.axes[2].images[1].get_array()[corners], [[0.25, 0.5], [0.75, 1]])
    assert fig.axes[2].images[1].get_array().shape == (8, 8)
    assert len(plots.attention(images(2), np.ones((2, 3, 4, 4))).axes) == 2 * 4 + 1
    with pytest.raises(UserError, match="类别词元"):
        plots.attention(images(1)[0], np.ones((2, 5)))


def test_filters_are_ordered_by_norm_and_grey_at_zero():
    weight = torch.zeros(3, 3, 2, 2)
    weight[1], weight[2, 0] = 1.0, -4.0
    fig = plots.filters(weight, most=2)
    first, second = (ax.images[0].get_array() for ax in fig.axes)
    assert (first[..., 0] == 0).all() and (first[..., 1] == 128).all()
    assert (second == 255).all()
    with pytest.raises(UserError, match="权重形状"):
        plots.filters(torch.zeros(3, 12))


def test_pictures_of_a_wrong_kind_are_refused():
    for wrong in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(UserError, match="uint8"):
            plots.image_grid(wrong)


LONG = (
    "an extremely long class",
    "另一个特别长的类别名称",
    "dog",
    "cat",
    "horse",
    "ship",
    "truck",
    "鸟",
    "鹿",
    "青蛙",
)


@pytest.mark.parametrize("names", [NAMES, LONG])
def test_no_text_runs_into_another(names):
    group = [run(0.6, seed, names=names) for seed in range(2)]
    named = {"原模型（改进，含自编码器预训练）": group, "ViT": group, "基线": group[:1]}
    data = SimpleNamespace(class_names=names, class_counts=COUNTS, test=SimpleNamespace(labels=group[0].labels))
    figures = [
        plots.curves(named, ["train_loss", "accuracy"]),
        plots.confusion(group),
        plots.per_class(named),
        plots.class_counts(data),
        plots.accuracy_bars(named),
        plots.image_grid(images(10), names),
        plots.predictions(images(6), range(6), [1, 1, 2, 0, 4, 1], [1.0] * 6, names),
    ]
    for fig in figures:
        assert fig.get_figwidth() <= 5.8
        assert_no_text_overlaps(fig)


def test_a_knobs_values_share_a_panel_from_light_to_dark_and_the_baseline_stands_out():
    base = [run(0.5, seed, epochs=8) for seed in range(3)]
    depths = {"1": [run(0.3, 0, epochs=8)], "6（基线）": base, "12": [run(0.9, seed, epochs=8) for seed in range(3)]}
    fig = panels.knob_curves({"块数": depths, "嵌入维数（FFN 随之）": {"256（基线）": base}})
    ax, losses, *_ = fig.axes
    assert len(fig.axes) == 4 and ax.get_title(loc="left") == "块数"
    assert [each.get_ylabel() for each in fig.axes] == ["验证准确率 / %", "训练损失"] * 2
    assert ax.get_ylim() == fig.axes[2].get_ylim() != losses.get_ylim()
    assert [line.get_ydata()[-1] for line in ax.lines] == pytest.approx([30, 50, 90])
    light, base_line, dark = (np.dot((0.3, 0.6, 0.1), to_rgb(line.get_color())) for line in ax.lines)
    assert light > base_line > dark
    assert [line.get_marker() for line in ax.lines] == ["None", "o", "None"] and len(ax.collections) == 2  # bands
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["12", "6（基线）", "1（1 个种子）"]
    assert_no_text_overlaps(fig)
    with pytest.raises(UserError, match="旋钮"):
        panels.knob_curves({})


def test_choices_that_have_no_order_differ_in_colour_and_dash_two_to_a_row():
    choices = {"批归一化": [run(0.6, 0, failed_at=9)], "RMS": [run(0.4, 0)], "层归一化（基线）": [run(0.5, 0)]}
    fig = panels.knob_curves({"归一化": choices, "池化": choices, "缩放": choices}, ["accuracy"])
    assert len(fig.axes) == 4 and not fig.axes[3].get_visible() and len({ax.get_ylim() for ax in fig.axes[:3]}) == 1
    drawn = fig.axes[2].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 3 and drawn[2].get_linestyle() == "-"
    words = [text.get_text() for text in fig.axes[2].get_legend().get_texts()]
    assert words == ["层归一化（基线）", "RMS", "批归一化（训练中止）"]
    assert_no_text_overlaps(fig)


def test_merged_patches_show_their_mean_and_white_lines_between():
    image = np.zeros((1, 3, 4, 4), np.uint8)
    image[0, :, :2, :2], image[0, :, :2, 2:], image[0, :, 2:] = 60, 20, 100
    painted = pictures.merged_patches(image, [[5, 5, 2, 2]], scale=2)  # both upper patches in one group
    assert painted.shape == (1, 3, 8, 8) and painted.dtype == np.uint8
    assert (painted[0, :, :4] == 40).all() and (painted[0, :, 5:] == 100).all()
    assert (painted[0, :, 4] == 255).all()
    with pytest.raises(UserError, match="组号"):
        pictures.merged_patches(image, [[0, 1, 2]])
