"""Comparisons with a collapsed run draw no conclusion."""

from types import SimpleNamespace

import numpy as np

from labreport.analysis.fallen import NO_VERDICT, fallen, frame
from labreport.stats import compare_table

LABELS = np.arange(10).repeat(40)


def run(share: float, seed: int) -> SimpleNamespace:
    """A run that answers ``share`` of the images rightly and otherwise class 0."""
    known = np.random.default_rng(seed).random(len(LABELS)) < share
    predicted = np.where(known, LABELS, 0)
    names = [str(k) for k in range(10)]
    accuracy = float((predicted == LABELS).mean())
    return SimpleNamespace(data={"class_names": names}, labels=LABELS, predicted=predicted, accuracy=accuracy)


def test_a_comparison_with_a_collapsed_run_has_no_verdict_and_others_keep_theirs():
    runs = {
        name: [run(share, seed) for seed in range(3)] for name, share in (("基线", 0.8), ("很好", 0.95), ("坏", 0.1))
    }
    found = compare_table({name: [each.predicted == LABELS for each in group] for name, group in runs.items()}, "基线")
    table = frame(found, [[runs[name] for name in row.names] for row in found])
    assert list(table.columns)[-1] == "结论"
    assert dict(zip(table["对比"], table["结论"], strict=True)) == {"很好 − 基线": "较高", "坏 − 基线": NO_VERDICT}
    assert len(fallen(runs["坏"])) == 3 and not fallen(runs["很好"])
    assert {how["answer"] for _, how in fallen(runs["坏"])} == {0}
