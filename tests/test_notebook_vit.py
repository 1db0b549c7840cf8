"""Notebook 2.1: every figure and table is spoken of, and the answer that opens it comes from its results."""

import re
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

from labreport import stats
from labreport.assembly.notebooks import run_notebooks
from vitlib.models import embedding, model_defaults
from vitlib.paths import share
from vitlib.recipes import RECIPES, recipe_named


@pytest.fixture(scope="module")
def cells():
    return nbformat.read(share("notebooks") / "2.1_vit.ipynb", as_version=4).cells


def test_every_figure_and_table_is_referred_to_and_exists(cells):
    text = "\n".join(cell.source for cell in cells)
    referred = set(re.findall(r"\]\(#((?:fig|tab):[\w-]+)\)", text))
    shown = set(re.findall(r'"((?:fig|tab):[\w-]+)"', text))
    assert len(shown) > 15
    assert referred == shown


def test_a_figure_that_may_be_missing_is_only_spoken_of_beside_it(cells):
    """Without weights some figures are left out; a reference from fixed prose would then break the report."""
    conditional = {
        label
        for cell in cells
        for line in re.findall(r"^ +show\.figure\(.*$", cell.source, flags=re.MULTILINE)
        for label in re.findall(r"fig:[\w-]+", line)
    }
    assert {"fig:vit-attention", "fig:vit-filters", "fig:vit-samples"} <= conditional
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert not any(f"#{label})" in prose for label in conditional)


def test_what_sets_a_recipe_apart_is_read_from_its_run(cells):
    """Another recipe under the same name gives another sentence; the order of its switches gives none."""
    sources = {cell.id: cell.source for cell in cells}
    longer = RECIPES["cpu-long"].but(epochs=5, weight_decay=0.2, augment={"flip": None, "crop": None, "erase": 0.25})
    longer = longer.but(augment={"flip": True})  # now the last of its switches

    def words_on(*recipes):
        whole, told = {it.name: [SimpleNamespace(name=it.name, recipe=it)] for it in recipes}, []

        def table(rows, *_, **__):
            told.extend("｜".join(row) for row in rows.itertuples(index=False))

        given = {
            "whole": whole, "show": SimpleNamespace(text=told.append, table=table), "stats": stats, "RECIPES": RECIPES,
            "model_defaults": model_defaults, "recipe_named": recipe_named, "pd": pd,
            "embedding": embedding,
        }  # fmt: skip
        for cell in ("recipe-words", "others-recipes"):
            exec(sources[cell], given)
        return "".join(told), given["settings"]

    words, settings = words_on(RECIPES["cpu"], longer, RECIPES["vit"])
    assert "cpu-long｜cpu｜宽度由 128 改为 192；轮数由 9 改为 5；权重衰减由 0.05 改为 0.2；" in words
    assert (
        words.endswith("数据增强增加随机擦除 0.25，去掉平移裁剪 4 像素")
        and "翻转" not in words
        and "vit｜" not in words
    )
    assert "块数（2）" in words and "轮数（9" not in words and "TrivialAugment" not in words
    again, _ = words_on(RECIPES["cpu-again"])  # learned with labels before, which is no pre-training
    assert "数据增强增加 TrivialAugment；" in again and "权重的起点由无改为 cpu-wide" in again
    assert "预训练" not in again
    broad, _ = words_on(RECIPES["cpu-broad"])
    assert "第一级 128 个通道，其后 384 个" in broad and "头数由 4 改为 5" in broad
    told = settings(RECIPES["best"].but(augment={"resized_crop": (0.8, 1.0, 0.9, 1.1), "jitter": 0.4}))["数据增强"]
    assert told == "CutMix 1、Mixup 0.8、TrivialAugment、平移裁剪 4 像素、翻转、随机擦除 0.25、随机缩放裁剪"


@pytest.mark.slow
def test_the_answer_at_the_top_is_replaced_by_the_one_at_the_end(tmp_path):
    """The mechanism, through the real execution of a small notebook."""
    cells = [
        "from labreport import show\nshow.text('暂缺', place='answer')",
        "show.text('准确率为90 %', place='answer', update=True)",
    ]
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    (executed,) = run_notebooks([path], {}, tmp_path / "out", progress=False)
    first, last = (cell.outputs for cell in nbformat.read(executed, as_version=4).cells[-2:])
    assert [output.data["text/markdown"] for output in first] == ["准确率为 90 %"]
    assert first[0].metadata["vitlib"]["kind"] == "text"
    assert last == []
