"""Notebook 2.3 on made-up records of the full plan: every figure is drawn and the sentences follow the records."""

import re

import pytest
from invented import invent

from labreport.assembly.document import merge
from labreport.assembly.notebooks import run_notebooks
from vitlib.paths import share

ALIKE = {1: 0.6, 2: 0.6, 4: 0.6, 6: 0.6, 8: 0.6, 12: 0.6}
DEEPER = {1: 0.45, 2: 0.5, 4: 0.55, 6: 0.6, 8: 0.62, 12: 0.65}


def told(tmp_path, monkeypatch, by_layers, with_head, narrow=0.4):
    """Run the notebook on runs whose accuracy is a matter of depth and, in the original, of its classifier.

    ``narrow`` is that of the original's smallest width with a linear classifier.
    """

    def accuracy(job):
        recipe = job.recipe
        if recipe.name == "original-patch16":
            return None
        if recipe.name == "original-patch16-continued":
            return 0
        if recipe.model_args.get("head") == "linear" and recipe.model_args.get("d_model") == 64:
            return narrow
        if recipe.model == "original":
            return with_head if recipe.model_args.get("head") != "linear" and "d_model" in recipe.model_args else 0.4
        return by_layers[recipe.model_args.get("num_layers", 6)]

    monkeypatch.setenv("CIFAR_VIT_RUNS", str(tmp_path / "runs"))
    invent(tmp_path / "runs", "2.3", accuracy, weights=("现代 ViT",), noise=0.002)
    parameters = {"profile": "full", "data": "synthetic"}
    (executed,) = run_notebooks(
        [share("notebooks") / "2.3_ablation.ipynb"], parameters, tmp_path / "out", progress=False
    )
    outputs = [output for cell in merge([executed])[0].cells for output in cell.get("outputs", ())]
    labels = {output.metadata.get("vitlib", {}).get("label") for output in outputs}
    names = "curves variant-curves pareto repeats classifier variants rollout removal likeness"
    assert {f"fig:ablation-{name}" for name in names.split()} <= labels
    return "\n".join(output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {}))


@pytest.mark.slow
def test_where_settings_tie_nothing_is_called_better(tmp_path, monkeypatch):
    words = told(tmp_path, monkeypatch, ALIKE, with_head=0.4)
    answer = words.split("**答案**")[-1]
    assert "等价的是" in answer and "显著更" not in answer
    assert "最后一轮的验证准确率" in words and "颜色越深，取值越大" in words
    assert "可见是它写错了位置引起的" in answer  # it stopped, and with the dropout in its place it did not
    assert "两者视为等价：影响不来自分类头" in words
    assert "“在现代 ViT（64 至 1024，训练 25 轮）里，嵌入维数越大越好”：不成立" in words
    assert re.search(
        r"旧报告的说法：.*“嵌入维数越大越好”在原系统（64 至 512，[^）]*）里.*，在现代 ViT（64 至 1024，训练 25 轮）里不成立",
        answer,
    )


@pytest.mark.slow
def test_a_setting_that_is_better_is_named(tmp_path, monkeypatch):
    words = told(tmp_path, monkeypatch, DEEPER, with_head=0.5, narrow=0.12)
    answer = words.split("**答案**")[-1]
    assert re.search(r"显著更低的是块数 1（低 1\d\.\d 个百分点）", answer) and "等价的是" in answer
    assert re.search(r"\*\*块数\*\*：最后一轮的验证准确率由高到低是.*12.*1（", words)
    assert "按验证准确率选出的是块数 12" in words and "显著更低的是块数 1（低 " in words
    assert re.search(
        r"嵌入维数从 64 到 512，原来的分类头上变化 .*但两端有几乎没有学到东西的（见下），影响来自哪里不能断定", words
    )
    assert "原系统，线性分类头（嵌入维数 64）的准确率还不到瞎猜的 1.5 倍" in words
