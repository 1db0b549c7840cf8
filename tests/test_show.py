"""What a notebook shows: captions, remarks on data and runs, pictures and tables as the report needs them."""

import base64
import io
import re
import warnings
from types import SimpleNamespace as Fake

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from labreport import show
from vitlib.data import Dataset, TestSet, TrainSet
from vitlib.errors import UserError
from vitlib.recipe import NUMERICS


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """Collect (MIME bundle, metadata) of everything shown; start without a context."""
    outputs: list[tuple[dict, dict]] = []
    monkeypatch.setattr(show, "display", lambda bundle, raw, metadata: outputs.append((bundle, metadata)))
    monkeypatch.setattr(show, "_context", {"data": None, "runs": ()})
    with plt.rc_context():
        show.use_chinese()
        yield outputs
    plt.close("all")


def make_data(name="course", provenance="课程数据", images=35580):
    return Fake(
        name=name, provenance=provenance, fingerprint="f" * 16, synthetic=name == "synthetic",
        train=range(images), test=range(4870), warnings=(), skipped=(),
    )  # fmt: skip


def make_run(name="best", seed=0, epochs=3, images=2000, data="course", **more):
    values = {
        "key": f"{name}-{seed}", "recipe": Fake(name=name, epochs=epochs), "seed": seed, "numerics": NUMERICS,
        "data": {"name": data, "fingerprint": "f" * 16, "provenance": "某数据", "train_images": images, "test_images": 9},
        "device": "CPU", "machine": {"dtype": "float32", "threads": 2, "torch": "2.15.0"}, "train_seconds": 61.0, "published": False, "failed": None,
    }  # fmt: skip
    return Fake(**values | more)


def curve():
    fig, axes = plt.subplots()
    axes.plot([0, 1, 2], [0.0, 1 / 3, -2 / 3])
    return fig


def meta_of(shown, kind):
    return [metadata["vitlib"] for _, metadata in shown if metadata["vitlib"]["kind"] == kind]


def test_chinese_minus_and_formulas_draw_without_missing_glyphs():
    fig, axes = plt.subplots()
    axes.plot([-1, 1], [-1, 1], label="准确率（%）")
    axes.set(title=r"注意力 $\sqrt{d_k}$ 与 $-3\times10^{-4}$", xlabel="轮次 −5")
    axes.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig.canvas.draw()
    assert plt.rcParams["font.family"][0] == "Noto Sans SC"


def test_line_art_is_svg_images_are_png_with_their_size(shown):
    show.figure(curve(), "曲线。", "fig:curve")
    fig, axes = plt.subplots(figsize=(3, 2))
    axes.imshow(np.zeros((32, 32, 3)))
    show.figure(fig, "图像", "fig:image")
    (svg, _), (png, png_meta) = (item for item in shown if item[1]["vitlib"]["kind"] == "fig")
    assert svg["image/svg+xml"].startswith("<svg") and "image/png" not in svg
    assert "image/png" in png and 180 <= png_meta["image/png"]["width"] <= 3.1 * 96
    assert svg["text/plain"] == "曲线" and not plt.get_fignums()


def test_paths_are_rounded_but_not_the_scale_of_glyphs():
    svg = show._picture(curve())[0]["image/svg+xml"]
    assert not re.search(r' d="[^"]*\.\d{3}', svg)
    assert re.search(r"scale\(0\.\d{3,}", svg)


def test_a_large_drawing_becomes_png():
    fig, axes = plt.subplots()
    noise = np.random.default_rng(0).random((8, 3000))
    axes.plot(noise.T)
    bundle, size = show._picture(fig)
    assert list(bundle) == ["image/png"]
    full = Image.open(io.BytesIO(show._save(fig, "png", dpi=show.PNG_DPI))).convert("RGB")
    small = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert small.mode == "P" and small.size == full.size  # fewer colours, and no eye tells them apart
    assert np.abs(np.asarray(small.convert("RGB"), float) - np.asarray(full, float)).mean() < 2  # of 255
    assert size["image/png"] == {
        "width": round(full.width * 96 / show.PNG_DPI), "height": round(full.height * 96 / show.PNG_DPI)
    }  # fmt: skip


def test_the_same_figure_gives_the_same_bytes():
    assert show._picture(curve()) == show._picture(curve())


@pytest.mark.parametrize(
    ("caption", "label", "words"),
    [
        (" 。", "fig:a", "没有题注"),
        ("甲", "tab:a", "不合规则"),
        ("甲", "fig:A b", "不合规则"),
        ("甲", "a", "不合规则"),
    ],
)
def test_bad_captions_and_labels_are_refused(caption, label, words):
    with pytest.raises(UserError, match=words):
        show.figure(curve(), caption, label)


def test_empty_things_are_refused():
    with pytest.raises(UserError, match="没有任何坐标轴"):
        show.figure(plt.figure(), "甲", "fig:a")
    with pytest.raises(UserError, match="没有任何一行"):
        show.table(pd.DataFrame({"a": []}), "甲", "tab:a")
    with pytest.raises(UserError, match="没有列“b”"):
        show.table(pd.DataFrame({"a": [1]}), "甲", "tab:a", formats={"b": ".1%"})
    with pytest.raises(UserError, match="空文字"):
        show.text("  ")
    with pytest.raises(UserError, match="空文字"):
        show.headline("")


@pytest.mark.parametrize(
    ("data", "runs", "expected"),
    [
        (make_data(), (), ""),
        (
            make_data(provenance="按类别比例抽取的子集：2,000 张", images=2000),
            (),
            "（子集：训练图像 2,000 张、测试图像 4,870 张）",
        ),
        (make_data("synthetic"), (), "（合成数据）"),
        (
            make_data("synthetic"),
            [make_run(data="synthetic")],
            "（合成数据；训练图像 2,000 张、3 轮、1 个种子）",
        ),
        (make_data(), {"甲": [make_run(seed=s) for s in (0, 1)]}, "（训练图像 2,000 张、3 轮、2 个种子）"),
        (
            make_data(),
            {"甲": make_run("a", epochs=300, images=32022), "乙": [make_run("b", s) for s in (0, 1, 2)]},
            "（训练图像 2,000–32,022 张、3–300 轮、1–3 个种子）",
        ),
    ],
)
def test_captions_say_what_data_and_runs_they_come_from(shown, data, runs, expected):
    show.set_context(data, runs)
    show.figure(curve(), "曲线", "fig:a")
    show.table(pd.DataFrame({"a": [1]}), "方法", "tab:a", result=False)
    assert meta_of(shown, "fig")[0]["caption"] == "曲线" + expected
    assert meta_of(shown, "tab")[0]["caption"] == "方法"


def test_a_subset_of_real_data_is_recognised_and_the_course_whole_is_not():
    images, labels = torch.zeros(40, 3, 4, 4, dtype=torch.uint8), torch.arange(40) % 2
    whole = Dataset(
        name="course", train=TrainSet(images, labels), test=TestSet(images, labels), class_names=("甲", "乙"),
        fingerprint="f" * 16, provenance="课程提供的 CIFAR-10 子集", warnings=(), skipped=(),
    )  # fmt: skip
    show.set_context(whole)
    assert show.remark() == ""
    show.set_context(whole.subset(20, 10))
    assert show.remark() == "（子集：训练图像 20 张、测试图像 10 张）"


def test_a_figure_of_other_runs_names_and_carries_those(shown):
    show.set_context(make_data(), [make_run(epochs=3)])
    show.figure(curve(), "曲线", "fig:a", runs=[make_run("other", epochs=8)])
    (meta,) = meta_of(shown, "fig")
    assert "8 轮" in meta["caption"] and [run["recipe"] for run in meta["runs"]] == ["other"]


def test_origins_hold_what_the_appendix_lists(shown):
    show.set_context(make_data(), [make_run(failed={"message": "非有限值"}), make_run(seed=1, numerics=0)])
    (origin,) = meta_of(shown, "origin")
    assert origin["data"]["train_images"] == 35580 and not origin["data"]["synthetic"]
    assert [run["stale"] for run in origin["runs"]] == [False, True]
    assert origin["runs"][0]["failed"] == "非有限值" and origin["runs"][0]["seconds"] == 61.0


def test_tables_align_numbers_escape_text_and_show_typographic_minus(shown):
    frame = pd.DataFrame(
        {"方法": ["<甲>", "乙"], "准确率": [0.5, -0.25], "参数": [137083658, 7], "值": [1.5, float("nan")],
         "差": [3.3e-5, -1.0], "区间": ["[−1.0, 2.0]", "[0.1, 0.4]"]},
        index=["x", "y"],
    )  # fmt: skip
    show.table(frame, "表", "tab:a", formats={"准确率": ".1%", "差": ".1e"})
    html = next(bundle["text/html"] for bundle, _ in shown if "text/html" in bundle)
    assert '<td class="txt">&lt;甲&gt;</td><td class="num">50.0 %</td><td class="num">137,083,658</td>' in html
    assert '<td class="num">−25.0 %</td><td class="num">7</td><td class="num">—</td>' in html
    assert '<td class="num">3.3 × 10⁻⁵</td><td class="num">[−1.0, 2.0]</td>' in html
    assert '<td class="num">−1.0 × 10⁰</td>' in html
    assert '<th class="txt" style="min-width: 3.5em">方法</th>' in html  # "<甲>" is four letters wide
    assert '<td class="txt">x</td>' in html
    show.table(frame.reset_index(drop=True), "表", "tab:b")
    assert '<td class="txt">x</td>' not in shown[-1][0]["text/html"]


def test_the_preview_of_a_caption_is_marked_so_that_the_report_drops_it(shown):
    show.figure(curve(), "曲线", "fig:a")
    assert [metadata["vitlib"]["kind"] for _, metadata in shown] == ["fig", "preview"]
    assert "曲线" in shown[1][0]["text/markdown"]


class Documented:
    """A class.

    Of two paragraphs.
    """

    def double(self, x: int) -> int:
        """Twice."""
        return 2 * x


def test_source_is_shown_without_docstrings_and_still_runs(shown):
    show.source(Documented)
    code = shown[0][0]["text/markdown"].removeprefix("```python\n").removesuffix("\n```")
    assert '"""' not in code
    space: dict = {}
    exec(code, space)
    assert space["Documented"]().double(4) == 8
