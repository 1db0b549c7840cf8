"""Notebook 2.2 on made-up records of the full plan: every figure is drawn and the sentences follow the records."""

import json
import re

import numpy as np
import pytest
import torch

from labreport.assembly.document import merge
from labreport.assembly.notebooks import run_notebooks
from vitlib.data import load
from vitlib.engine import Outcome
from vitlib.paths import share
from vitlib.plans import PROFILES, jobs, tailed
from vitlib.store import make_record

CPU = torch.device("cpu")
GAIN = {"P": 0.12, "A": 0.05, "W": 0.0, "O": -0.03}  # of a remedy in a combination
HELPS = ("均衡 softmax", "事后 logit 调整")  # on long tails only


def accuracy(label):
    """The accuracy that the made-up runs of a label have, by design."""
    if label.startswith("IF "):
        return 0.7 if label.endswith(HELPS) else 0.5
    names = {"预训练": "P", "数据增强": "A", "类别加权": "W", "难例挖掘": "O"}
    return 0.5 + sum(GAIN[player] for name, player in names.items() if name in label.partition("：")[2].split("＋"))


def invent(root):
    """Fill a run store with made-up finished runs of section 2.2 in full, on generated images."""
    data = load("synthetic")
    difficulty = np.random.RandomState(0).random_sample(len(data.test))
    for number, job in enumerate(jobs("2.2", PROFILES["full"])):
        mine, source = tailed(data, job.factor), np.random.RandomState(number)
        right = 0.8 * difficulty + 0.2 * source.random_sample(len(difficulty)) < accuracy(job.label)
        answers = torch.where(torch.from_numpy(right), mine.test.labels, (mine.test.labels + 1) % 10)
        curve = np.linspace(0.1, 0.9, job.recipe.epochs).tolist()
        watched = "test_accuracy" if job.recipe.protocol == "original" else "val_accuracy"
        history = {"train_loss": curve[::-1], "train_accuracy": curve, watched: curve} if curve else {}
        timing = {"train_seconds": 1.0, "images_per_second": 1.0}
        logits = 3.0 * torch.nn.functional.one_hot(answers, 10)
        record = make_record(job.recipe, job.seed, mine, CPU, Outcome(history, {}, logits, None, timing))
        (root / record["key"]).mkdir(parents=True)
        (root / record["key"] / "record.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.slow
def test_the_full_plan_is_told_from_its_records(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_VIT_RUNS", str(tmp_path / "runs"))
    invent(tmp_path / "runs")
    path = share("notebooks") / "2.2_imbalance.ipynb"
    parameters = {"profile": "full", "data": "synthetic"}
    (executed,) = run_notebooks([path], parameters, tmp_path / "out", progress=False)
    notebook, _ = merge([executed])
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    words = "\n".join(output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {}))
    for family in ("原系统", "现代 ViT"):
        assert f"“{family}：预训练的帮助最大”：成立" in words
    assert "份额由大到小依次是" in words and "种子不足" not in words
    assert re.search(r"不平衡因子 100 时，领先交叉熵最多的是(均衡 softmax|事后 logit 调整)（.*较高）", words)
    assert words.count("留待 full 档位") == 0
    labels = {output.metadata.get("vitlib", {}).get("label") for output in outputs}
    assert {"fig:imbalance-shares", "tab:imbalance-claims", "fig:imbalance-tail", "fig:imbalance-masked"} <= labels
