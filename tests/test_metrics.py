"""Measures against values worked by hand and their defining identities."""

from types import SimpleNamespace

import numpy as np
import pytest

from labreport.metrics import (
    accuracy,
    collapse,
    confusion,
    epochs_to_stay,
    expected_calibration_error,
    fitted_counts,
    formats,
    per_class_recall,
    reliability,
    score_table,
    scores,
)
from vitlib.errors import UserError

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 2, 2, 0])
CONFIDENCE = np.array([0.9, 0.9, 0.9, 0.6, 0.6, 0.6, 0.6, 0.6])


def test_measures_by_hand():
    result = scores(LABELS, PREDICTED, CONFIDENCE, 3)
    assert result["accuracy"] == pytest.approx(5 / 8)
    assert result["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1 / 2) / 3)
    # F1 = 2 TP / (2 TP + FP + FN): 6/8, 2/4, 2/4.
    assert result["macro_f1"] == pytest.approx((6 / 8 + 1 / 2 + 1 / 2) / 3)
    assert (result["worst_class"], result["worst_recall"]) == (1, 0.5)
    # Three at 0.9, all right: gap 0.1; five at 0.6, two right: gap 0.2.
    assert result["ece"] == pytest.approx((3 * 0.1 + 5 * 0.2) / 8)


def test_the_accuracy_of_seeds_has_an_interval_that_knows_how_many_images_there_were():
    few, many = (
        accuracy([SimpleNamespace(accuracy=0.6 + 0.01 * seed, labels=np.zeros(n)) for seed in range(3)])
        for n in (100, 10_000)
    )
    assert few.mean == many.mean == pytest.approx(0.61) and few.low < 0.52 < 0.57 < many.low
    assert np.isnan(accuracy([SimpleNamespace(accuracy=np.nan, labels=LABELS)]).mean)


def test_the_images_learned_from_are_those_not_held_out():
    def counts(protocol):
        data = {"class_counts": [498, 45, 4, 1]}
        return fitted_counts(SimpleNamespace(data=data, recipe=SimpleNamespace(protocol=protocol))).tolist()

    assert counts("study") == [448, 40, 3, 1] and counts("refit") == [498, 45, 4, 1]


def test_confusion_rows_are_the_truth():
    expected = [[3, 1, 0], [0, 1, 1], [1, 0, 1]]
    assert confusion(LABELS, PREDICTED, 3).tolist() == expected
    assert confusion(LABELS, PREDICTED, 4)[3].tolist() == [0, 0, 0, 0]


def test_a_class_without_test_images_is_left_out_of_every_mean():
    assert np.isnan(per_class_recall(LABELS, PREDICTED, 4)[3])
    assert scores(LABELS, PREDICTED, CONFIDENCE, 4) == scores(LABELS, PREDICTED, CONFIDENCE, 3)


def test_always_one_class_scores_as_the_original_at_patch_16():
    labels = np.repeat(np.arange(10), 487)
    result = scores(labels, np.zeros_like(labels), np.full(labels.shape, 0.1), 10)
    assert result["accuracy"] == result["balanced_accuracy"] == pytest.approx(0.1)
    assert result["worst_recall"] == 0
    assert result["ece"] == pytest.approx(0)


def test_reliability_bins_are_closed_above_and_complete():
    edges = np.array([0.0, 1 / 15, 1 / 15 + 1e-6, 1.0])
    diagram = reliability(np.zeros(4), np.array([0, 0, 1, 0]), edges)
    assert diagram["images"][[0, 1, 14]].tolist() == [2, 1, 1] and diagram["images"].sum() == 4
    assert diagram["accuracy"][1] == 0 and diagram["accuracy"][14] == 1
    assert np.isnan(diagram["accuracy"][7])
    kept = np.arange(17, 256, 17, dtype=np.uint8).astype(np.float32) / 255  # edges, as a record keeps them
    assert reliability(np.zeros(15), np.zeros(15), kept)["images"].tolist() == [1] * 15


def test_calibration_error_of_calibrated_and_overconfident_predictions():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1, 20000)
    correct = rng.uniform(size=20000) < confidence
    labels = np.zeros(20000, dtype=int)
    predicted = np.where(correct, 0, 1)
    assert expected_calibration_error(labels, predicted, confidence) < 0.02
    sure = expected_calibration_error(labels, predicted, np.ones(20000))
    assert sure == pytest.approx(1 - correct.mean())


def fake_run(predicted, labels=LABELS, names=("飞机", "汽车", "鸟"), **model_args):
    return SimpleNamespace(
        labels=labels,
        predicted=predicted,
        confidence=CONFIDENCE,
        accuracy=np.mean(labels == predicted),
        data={"class_names": names},
        recipe=SimpleNamespace(model_args=model_args),
    )


def test_tables_for_readers():
    table = score_table({"基线": [fake_run(PREDICTED), fake_run(LABELS)], "改进": [fake_run(LABELS)]})
    assert list(table["配方"]) == ["基线", "改进"] and list(table["种子数"]) == [2, 1]
    assert table["准确率 / %"][0] == "81.2 ± 26.5" and table["准确率 / %"][1] == "100.0"
    assert table["最差类别"][0] == "汽车" and table["最差类别召回率 / %"][0] == "75.0 ± 35.4"
    with pytest.raises(UserError, match="改进"):
        score_table({"改进": []})


def test_number_formats_are_counted_the_commonest_first_and_old_records_do_not_tell():
    runs = [SimpleNamespace(machine={"dtype": dtype}) for dtype in ("float32", "bfloat16", "bfloat16")]
    assert formats([*runs, SimpleNamespace(machine={})]) == "2 次用 bfloat16 与 float32 的混合精度，1 次用 float32"
    assert formats([SimpleNamespace(machine={})]) == ""


def test_the_confidence_of_bare_cosines_is_not_judged_as_a_probability():
    runs = {"余弦": [fake_run(PREDICTED, cosine_head=True)], "线性": [fake_run(PREDICTED)]}
    assert score_table(runs)["ECE / %"].tolist() == ["—", "16.2"]


def test_a_run_collapses_when_one_answer_serves_most_images_or_it_only_guesses():
    labels, source = np.repeat(np.arange(10), 100), np.random.RandomState(0)
    names = [f"{c}" for c in range(10)]
    one = np.where(labels == 3, labels, np.where(np.arange(1000) % 10 < 5, 7, labels))
    assert collapse(fake_run(one, labels, names)) is None  # 45 % of 900 images and a tenth that is right
    one[labels > 1] = 7
    found = collapse(fake_run(one, labels, names))
    assert found["answer"] == 7 and found["share"] == pytest.approx(np.mean(one == 7)) and found["share"] > 0.5
    assert collapse(fake_run(source.permutation(labels), labels, names)) is not None  # even answers, but by chance
    assert collapse(fake_run(labels, labels, names)) is None
    two = np.repeat([0, 1], 100)
    assert collapse(fake_run(two, two, ["a", "b"])) is None  # of two classes one has always half
    assert collapse(fake_run(np.zeros_like(two), two, ["a", "b"]))["share"] == 1
    uneven = np.repeat([0, 1, 2], [80, 10, 10])
    assert collapse(fake_run(uneven, uneven, ["a", "b", "c"])) is None  # that most are of one class is no collapse ...
    assert collapse(fake_run(np.zeros_like(uneven), uneven, ["a", "b", "c"]))  # ... to say so of all is one


def test_the_epoch_from_which_a_curve_stays_near_its_end():
    assert epochs_to_stay(np.array([0.1, 0.95, 0.2, 0.9, 1.0])) == 4  # a dip before the end counts
    assert epochs_to_stay(np.array([0.1, 0.2, 1.0])) == 3 and epochs_to_stay(np.array([1.0, 1.0])) == 1


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="一一对应"):
        scores(LABELS, PREDICTED[:-1], CONFIDENCE, 3)
    with pytest.raises(UserError, match="一一对应"):
        reliability(LABELS, PREDICTED, CONFIDENCE[:-1])
    with pytest.raises(UserError, match="类别数 2"):
        confusion(LABELS, PREDICTED, 2)
    with pytest.raises(UserError, match="不为空"):
        confusion(LABELS[:0], PREDICTED[:0], 2)
