"""Notebook 2.2 on made-up records of the full plan: every figure is drawn and the sentences follow the records."""

import re
from functools import partial

import pytest
from invented import invent

from labreport.assembly.document import merge
from labreport.assembly.notebooks import run_notebooks
from vitlib.paths import share

HELPS = ("均衡 softmax", "事后 logit 调整")  # on long tails only
NAMES = {"预训练": "P", "数据增强": "A", "类别加权": "W", "难例挖掘": "O"}
MEASURED = ("现代 ViT：无对策", "现代 ViT：数据增强", "现代 ViT：数据增强＋类别加权", "现代 ViT：增强最强")


def accuracy(gain, job):
    """The accuracy that the made-up runs of a job have, by design; ``gain`` of a remedy in a combination."""
    label = job.label
    if label.startswith("IF "):
        return 0.7 if label.endswith(HELPS) else 0.5
    return 0.5 + sum(gain[NAMES[name]] for name in label.partition("：")[2].split("＋") if name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        ({"P": 0.12, "A": 0.05, "W": 0.0, "O": -0.03}, "成立"),
        ({"P": -0.05, "A": 0.02, "W": 0.12, "O": 0.0}, "不成立"),
        ({"P": 0.0, "A": -0.1, "W": -0.1, "O": -0.1}, "不成立|证据不足"),  # it leads, but it does not help
    ],
)
def test_the_full_plan_is_told_from_its_records(tmp_path, monkeypatch, gain, verdict):
    monkeypatch.setenv("CIFAR_VIT_RUNS", str(tmp_path / "runs"))
    invent(tmp_path / "runs", "2.2", partial(accuracy, gain), MEASURED)
    path = share("notebooks") / "2.2_imbalance.ipynb"
    parameters = {"profile": "full", "data": "synthetic"}
    (executed,) = run_notebooks([path], parameters, tmp_path / "out", progress=False)
    notebook, _ = merge([executed])
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    words = "\n".join(output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {}))
    for family, pretraining in (("原系统", "预训练"), ("现代 ViT", "掩码预训练")):
        assert re.search(f"“{family}：{pretraining}的帮助最大”：({verdict})。", words)
    first = max(gain, key=gain.get)
    title = next(name for name, player in NAMES.items() if player == first)
    assert re.search(f"原系统上各项的份额（百分点）是{title} ", words) and "种子不足" not in words
    assert re.search(r"不平衡因子 100 时，能比较的 \d+ 项对策里，显著高于交叉熵的有 2 项：", words)
    assert all(re.search(rf"显著高于交叉熵的有 2 项：[^。]*{name}（\+", words) for name in HELPS)
    assert "“类别加权使多数类与少数类对梯度的贡献更接近”：证据不足" in words  # the weights of one seed
    assert "“增强越多，过拟合越重”：证据不足" in words
    assert "留待" not in words and "目标 100，实际 " in words
    labels = {output.metadata.get("vitlib", {}).get("label") for output in outputs}
    assert {"fig:imbalance-shares", "tab:imbalance-claims", "fig:imbalance-tail", "fig:imbalance-masked"} <= labels
    assert {"tab:imbalance-ledger", "fig:imbalance-doses", "fig:imbalance-gradients"} <= labels
