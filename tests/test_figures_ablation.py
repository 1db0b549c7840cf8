"""Figures of 2.3: what they draw is what they are given, and nothing overlaps."""

import math

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from test_plots import assert_no_text_overlaps

from labreport import show
from labreport.figures import ablation as figures
from labreport.figures import panels
from vitlib.models import create_model

IMAGES = 4000


@pytest.fixture(autouse=True)
def chinese():
    with matplotlib.rc_context():
        show.use_chinese()
        yield
        plt.close("all")


def points(seeds=3):
    rows = []
    for knob, values in {"图像块大小": (2, 4, 8), "嵌入维数": (64, 256, 512, 1024), "块数": (1, 6, 12)}.items():
        for i, value in enumerate(values):
            accuracies = [0.5 + 0.06 * i + 0.01 * seed for seed in range(seeds)]
            rows.append({"knob": knob, "value": value, "label": f"{knob} {value}", "accuracies": accuracies,
                         "flops": 20.0 * 4**i, "latency": 3.0**i, "memory": 100.0 * 2**i})  # fmt: skip
    return pd.DataFrame(rows)


def test_each_knob_stands_against_each_cost():
    fig = figures.costs(points(), IMAGES)
    assert len(fig.axes) == 9 and fig.axes[0].get_title(loc="left") == "图像块大小"
    np.testing.assert_allclose(fig.axes[1].lines[0].get_xdata(orig=False), [1, 3, 9])
    np.testing.assert_allclose(fig.axes[3].lines[0].get_ydata(), [51, 57, 63, 69])
    low = fig.axes[0].collections[0].get_segments()[0][0][1]
    images = 196 * (0.51 * 0.49 / IMAGES) ** 0.5  # beside Student's t with two degrees of freedom
    assert low == pytest.approx(51 - math.hypot(4.303 * 1 / 3**0.5, images), abs=0.01)
    few = figures.costs(points(seeds=1), IMAGES).axes[0]
    assert few.collections[0].get_segments()[0][0][1] == pytest.approx(50)
    assert few.lines[-1].get_markerfacecolor() == "white" and few.lines[-1].get_xdata(orig=False).size == 3
    assert fig.axes[0].lines[-1].get_xdata(orig=False).size == 0


def test_names_of_settings_that_cost_the_same_do_not_meet():
    rows = [{"knob": "注意力头数", "value": h, "label": f"注意力头数 {h}", "accuracies": [0.55 + 0.0005 * h],
             "flops": 160.0, "latency": 2.0, "memory": 300.0} for h in (1, 2, 4, 8, 16)]  # fmt: skip
    assert_no_text_overlaps(figures.costs(pd.concat([points(), pd.DataFrame(rows)], ignore_index=True), IMAGES))


def test_the_joint_figure_names_the_front_and_nothing_else():
    data = points()
    data.loc[0, "accuracies"] = data.loc[0, "accuracies"][:1]  # a smaller mean at the same cost
    fig = figures.joint(data, IMAGES)
    best = figures.front(data.assign(percent=[np.mean(each) for each in data["accuracies"]]), "flops", "percent")
    assert list(best["flops"]) == sorted(best["flops"]) and best["percent"].is_monotonic_increasing
    assert "图像块大小 2" not in list(best["label"])
    assert [text.get_text() for text in fig.axes[0].texts] == list(best["label"])
    assert_no_text_overlaps(fig)
    drawn = np.asarray(fig.axes[0].collections[1].get_offsets())  # the last drawn, and on top, is the first given
    np.testing.assert_allclose(drawn[-1], (20, 100 * np.mean(data["accuracies"][0])))
    assert len({round(x, 6) for x, _ in drawn}) == len(data)  # those of equal cost stand side by side
    assert drawn[:, 0] == pytest.approx(data["flops"][::-1], rel=0.08)
    hollow = fig.axes[0].collections[2:]  # the setting of one seed, and no other
    assert len(hollow) == 1 and hollow[0].get_facecolor()[0].tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(hollow[0].get_offsets(), drawn[-1:])


def test_repeated_trainings_stand_about_their_mean_with_the_printed_best_among_them():
    fig = figures.repeats({"旧报告": [-1.0, 0.2, 0.8], "现代 ViT": [-0.1, 0.1]}, 1.1, "8 个头")
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["旧报告", "现代 ViT"]
    assert (
        len(set(ax.lines[0].get_ydata())) == 3
        and ax.lines[0].get_xdata().tolist() == [-1.0, 0.2, 0.8]
        and abs(ax.lines[1].get_ydata() - 1).max() < 0.2
    )
    assert (ax.lines[2].get_xdata().tolist(), ax.lines[2].get_ydata().tolist()) == ([1.1], [0])
    assert_no_text_overlaps(fig)


def test_printed_numbers_stand_beside_ours():
    fig = figures.beside_printed({"图像块大小 4": (65.5, [0.5, 0.6]), "注意力头数 8": (69.4, [0.7])}, [0.66, 0.68])
    drawn = [line.get_xdata() for line in fig.axes[0].lines[:6]]
    assert [float(np.ravel(x)[0]) for x in drawn] == pytest.approx([65.5, 50, 55, 69.4, 70, 70])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "旧报告", "各种子", "本项目（均值）", "默认设置的各种子，完整轮数",
    ]  # fmt: skip
    assert_no_text_overlaps(fig)


def test_a_line_for_each_model_over_a_knobs_values():
    fig = figures.lines(
        {"图像块大小": {"甲": {4: [0.5], 8: [0.4]}, "乙": {4: [0.6, 0.7, 0.8]}}, "嵌入维数": {"甲": {64: [0.3]}}},
        IMAGES,
    )
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["4", "8"]
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), [50, 40])
    hollow = [line for line in fig.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [line.get_xdata().tolist() for line in hollow] == [[4, 8], []]  # of one seed, and of three
    assert_no_text_overlaps(fig)


def test_the_inside_as_pictures():
    similarity = torch.rand(16, 16)
    made = [
        figures.distances(torch.rand(6, 4), 16.0),
        figures.importance(torch.rand(6, 4) / 50 - 0.01, torch.rand(6), torch.full((6, 4), 0.02), torch.rand(6) / 50),
        figures.likeness(torch.rand(6, 6), torch.linspace(0.1, 0.9, 6)),
        figures.places(similarity),
    ]
    for fig in made[:3]:
        assert_no_text_overlaps(fig)
    tiles = np.asarray(made[3].axes[0].images[0].get_array())
    np.testing.assert_allclose(tiles[5:9, 10:14], similarity[1 * 4 + 2].view(4, 4))  # row 1, column 2
    assert np.isnan(np.ma.filled(tiles, np.nan)[4]).all()
    heads = made[1].axes[0].collections[0].get_array()
    assert heads.shape == (6, 4) and made[1].axes[1].patches[0].get_width() >= 0
    assert made[1].axes[0].collections[0].get_clim() == pytest.approx((-8, 8))  # four standard errors: noise is pale
    red, _, blue, _ = made[1].axes[0].collections[0].cmap(1.0)
    assert red > blue and len(made[1].axes) == 3  # a fall is red, and a bar says so


def test_attention_can_be_asked_by_image_block_and_head():
    model = create_model("vit", d_model=16, num_heads=2, num_layers=3, ffn_hidden_channels=16, pool="cls").eval()
    box = panels.browse_attention(model, torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), "half")
    image, block, head, picture = box.children
    assert [(s.min, s.max, s.value) for s in (image, block, head)] == [(1, 2, 1), (1, 3, 3), (0, 2, 0)]
    seen = {bytes(picture.value)}
    for slider, value in ((image, 2), (block, 1), (head, 2)):
        slider.value = value
        seen.add(bytes(picture.value))
    assert len(seen) == 4 and all(value.startswith(b"\x89PNG") for value in seen)
    assert not plt.get_fignums()  # nothing stays open


def test_a_cost_that_was_not_measured_stays_empty():
    fig = figures.costs(points().assign(latency=np.nan), IMAGES)
    fig.canvas.draw()
    assert not np.isfinite(fig.axes[1].lines[0].get_xdata(orig=False)).any()
    assert fig.axes[0].lines[0].get_xdata(orig=False).tolist() == [20, 80, 320]
