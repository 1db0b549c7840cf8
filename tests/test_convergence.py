"""What 2.3 says about its curves: the sentences follow from the records, and say something else when the records do."""

from types import SimpleNamespace

import numpy as np
import pytest

from labreport.analysis.convergence import by_value, compared, sampling_error, trends
from vitlib import knobs

COUNTS = [1000] * 4


def runs(end, seeds=3, slow=False, loss=(2.0, 1.8, 1.6, 1.5), recipe=knobs.BASE, failed=None):
    """Made-up runs of one setting, whose validation accuracy ends at ``end``."""
    curve = np.array([0.2, 0.5, 0.8, 1.0] if slow else [0.2, 0.95, 0.99, 1.0]) * end
    history = {"val_accuracy": curve, "train_loss": np.array(loss)}
    run = SimpleNamespace(history=history, failed=failed, recipe=recipe, data={"class_counts": COUNTS})
    return [run] * seeds


def test_the_values_are_ranked_and_the_quickest_is_named():
    said = compared({"1": runs(0.3), "6（基线）": runs(0.4, slow=True), "12": runs(0.42)})
    assert "由高到低是 12（42.0 %）、6（基线，40.0 %）、1（30.0 %），首尾相差 12.0 个百分点" in said
    assert "最快达到的是 1、12（2.0 轮），最慢的是 6（基线，4.0 轮）" in said


def test_ties_and_few_seeds_are_told_as_such():
    assert compared({"1": runs(0.4), "2": runs(0.4)}) == (
        "1、2最后一轮的验证准确率都是 40.0 %；各取值达到的轮次相同，都是 2.0 轮。".replace("2最", "2 最")
    )
    mixed = compared({"1": runs(0.3), "2": runs(0.4), "4": runs(0.5, seeds=1, slow=True)})
    assert "4（50.0 %）" in mixed and "种子不少于 3 个的取值里，各取值达到的轮次相同" in mixed
    alone = compared({"1": runs(0.3, seeds=1), "2": runs(0.4, seeds=1, slow=True)})
    assert "最快达到的是 1（" in alone and "种子不少于" not in alone
    assert compared({"1": runs(0.3)}) == "" == compared({"1": runs(0.3), "2": runs(0.3, failed={"step": 1})})


def test_settings_that_still_improve_are_counted():
    risen, done = runs(0.5, slow=True), runs(0.5)
    one = trends({"甲": risen, "乙": done})
    assert "的只有甲，它的名次" in one and "2 个设置的训练损失都还在下降" in one
    flat = runs(0.5, slow=True, loss=(1.0, 1.0, 1.0, 1.0))
    both = trends({"甲": risen, "乙": flat})
    assert "的有甲、乙，它们的名次" in both and "2 个设置里有 1 个的训练损失还在下降" in both
    none = trends({"乙": runs(0.5, loss=(1.0, 1.0, 1.0, 1.0)), "丙": runs(0.5, loss=(1.0, 1.0, 1.0, 1.1))})
    assert "没有一个设置的验证准确率" in none and "没有一个还在下降" in none


def test_the_error_is_that_of_one_validation_set_however_many_seeds():
    assert sampling_error(runs(0.5)) == sampling_error(runs(0.5, seeds=1)) == (pytest.approx(0.025), 400)


def test_settings_bear_their_bare_values():
    family = {
        "位置嵌入“不加”": runs(0.3, recipe=knobs.modern(pos="none")),
        "位置嵌入“可学习”（基线）": runs(0.4),
    }
    assert list(by_value({"位置嵌入": family})["位置嵌入"]) == ["不加", "可学习（基线）"]
