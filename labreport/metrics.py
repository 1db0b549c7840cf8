"""Measures of one set of predictions, and their tables over runs.

Labels and predictions are class numbers 0 to K - 1, (images,); a confidence is the probability (0-1) given to
the predicted class. All measures are fractions; only the tables for readers are in percent.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score

from labreport.stats import Summary, summary
from vitlib.data.sets import held_out
from vitlib.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from vitlib.record import Run

BINS = 15  # of equal width, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"


class Scores(TypedDict):
    """accuracy; balanced_accuracy: mean recall; macro_f1; worst_recall of class worst_class; ece."""

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    worst_recall: float
    worst_class: int
    ece: float


def scores(labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, classes: int) -> Scores:
    """All measures of one set of predictions; classes without test images count in none of the means."""
    recall = per_class_recall(labels, predicted, classes)
    present = np.flatnonzero(~np.isnan(recall))
    return Scores(
        accuracy=float(np.mean(np.equal(labels, predicted))),
        balanced_accuracy=float(recall[present].mean()),
        macro_f1=float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        worst_recall=float(recall[present].min()),
        worst_class=int(present[recall[present].argmin()]),
        ece=expected_calibration_error(labels, predicted, confidence),
    )


def accuracy(runs: "Sequence[Run]") -> Summary:
    """Test accuracy of a recipe's seeds; its interval holds the seeds' spread and the test images' sampling error.

    A failed run counts with the accuracy of the weights it stopped at.
    """
    return summary([run.accuracy for run in runs], images=len(runs[0].labels))


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (K, K): row = true class, column = predicted class."""
    _check(labels, predicted, classes)
    return confusion_matrix(labels, predicted, labels=np.arange(classes))


def per_class_recall(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Share of each class's images that were predicted rightly, (K,); NaN for a class without images."""
    counts = confusion(labels, predicted, classes)
    sizes = counts.sum(axis=1)
    return np.divide(counts.diagonal(), sizes, out=np.full(classes, np.nan), where=sizes > 0)


class Reliability(TypedDict):
    """Per bin of confidence, (BINS,): images, their mean confidence and accuracy (NaN in an empty bin)."""

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, bins: int = BINS) -> Reliability:
    """Bins of equal width, closed above: the points of a reliability diagram."""
    _check(labels, predicted, None, confidence)
    places = np.round(
        np.asarray(confidence, dtype=float) * bins, 5
    )  # a record's k/255 is on an edge, not just above it
    index = np.clip(np.ceil(places).astype(int) - 1, 0, bins - 1)
    images = np.bincount(index, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(index, weights=values, minlength=bins)
        return np.divide(sums, images, out=np.full(bins, np.nan), where=images > 0)

    return Reliability(
        images=images, confidence=mean(confidence), accuracy=mean(np.equal(labels, predicted).astype(float))
    )


def expected_calibration_error(
    labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, bins: int = BINS
) -> float:
    """Mean over images of |accuracy - confidence| of the image's bin (Guo et al. 2017, equation 3)."""
    diagram = reliability(labels, predicted, confidence, bins)
    gaps = np.abs(diagram["accuracy"] - diagram["confidence"])
    return float(np.nansum(diagram["images"] * gaps) / diagram["images"].sum())


def run_scores(run: Any) -> Scores:
    """``scores`` of a finished run on its test set."""
    return scores(run.labels, run.predicted, run.confidence, len(run.data["class_names"]))


def is_probability(run: Any) -> bool:
    """Whether a run's confidence is a probability: the softmax of bare cosines, without LDAM's scale, is none."""
    return not run.recipe.model_args.get("cosine_head", False)


class Collapse(TypedDict):
    """The class that a collapsed run answers most often, and the share (0-1) of the test images that get it."""

    answer: int
    share: float


def collapse_bounds(run: Any) -> tuple[float, float]:
    """Return the share (0-1) of the test images that no class may get, and the accuracy that always guessing one has.

    The first is 5/K for K classes (half of them for ten), with fewer classes half way from the largest one's share to all.
    A run that gives a class more, or whose accuracy is within two standard errors of the second, has collapsed.
    """
    guess = float(np.bincount(run.labels).max() / len(run.labels))
    return min((1 + guess) / 2, 5 / len(run.data["class_names"])), guess


def collapse(run: Any) -> Collapse | None:
    """Return what a run gives as its answer when it hardly tells classes apart, else None; see :func:`collapse_bounds`."""
    classes, images = len(run.data["class_names"]), len(run.labels)
    given = np.bincount(run.predicted, minlength=classes) / images
    most, guess = collapse_bounds(run)
    if given.max() <= most and run.accuracy > guess + 2 * np.sqrt(guess * (1 - guess) / images):
        return None
    return Collapse(answer=int(given.argmax()), share=float(given.max()))


def score_table(runs_by_label: Mapping[str, Sequence[Any]]) -> "pd.DataFrame":
    """One row a recipe, mean ± deviation over its seeds in percent, for readers.

    The worst class is the one with the lowest recall averaged over the seeds.
    """
    import pandas as pd

    columns = {
        "准确率 / %": "accuracy",
        "平均召回率 / %": "balanced_accuracy",
        "宏平均 F1 / %": "macro_f1",
        "ECE / %": "ece",
    }
    rows = []
    for label, runs in runs_by_label.items():
        if not runs:
            raise UserError(f"“{label}”没有任何完成的训练，无法列入结果表。")
        measured = [run_scores(run) for run in runs]
        row: dict[str, Any] = {"配方": label, "种子数": len(runs)}
        for column, key in columns.items():
            row[column] = summary([each[key] for each in measured]).percent  # type: ignore[literal-required]
        if not is_probability(runs[0]):
            row["ECE / %"] = "—"
        names = runs[0].data["class_names"]
        recalls = np.array([per_class_recall(run.labels, run.predicted, len(names)) for run in runs])
        worst = int(np.nanargmin(recalls.mean(axis=0)))
        row["最差类别"] = names[worst]
        row["最差类别召回率 / %"] = summary(recalls[:, worst].tolist()).percent
        rows.append(row)
    return pd.DataFrame(rows)


def fitted_counts(run: Any) -> np.ndarray:
    """Return the images of each class (int) that a run learned from: a study holds some out for validation."""
    counts = np.array(run.data["class_counts"])
    return counts - held_out(counts.tolist()) if run.recipe.protocol == "study" else counts


def class_groups(class_counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the classes (int) of the third with most, the middle and the third with fewest training images.

    The long-tail papers cut at 100 and 20 images, which leaves nothing but large classes in mildly uneven data.
    """
    order = np.argsort(-np.asarray(class_counts), kind="stable")
    third = max(1, len(order) // 3)
    return {"多数类": order[:third], "居中的类": order[third : len(order) - third], "少数类": order[-third:]}


def group_table(runs_by_label: Mapping[str, Sequence[Any]]) -> "pd.DataFrame":
    """One row a recipe: the mean recall within each group of classes, mean ± deviation over seeds in percent."""
    import pandas as pd

    rows = []
    for label, runs in runs_by_label.items():
        row = {"配方": label}
        for name, group in class_groups(runs[0].data["class_counts"]).items():
            recalls = [per_class_recall(run.labels, run.predicted, len(run.data["class_names"]))[group] for run in runs]
            known = [recall[~np.isnan(recall)].mean() for recall in recalls if not np.isnan(recall).all()]
            row[f"{name} / %"] = summary(known).percent if known else "—"
        rows.append(row)
    return pd.DataFrame(rows)


def epochs_to_stay(curve: np.ndarray, share: float = 0.9) -> int:
    """Return the epoch (1-based) from which a curve (epochs,), not empty, stays at ``share`` of its last value or above."""
    return 1 + len(curve) - int(np.argmax([*(curve[::-1] < share * curve[-1]), True]))


def formats(runs: Sequence[Any]) -> str:
    """Return in what number format runs were trained, as Chinese words; empty where the records do not tell."""
    names = {"float32": "float32", "bfloat16": "bfloat16 与 float32 的混合精度"}
    counted = Counter(str(run.machine["dtype"]) for run in runs if "dtype" in run.machine)
    return "，".join(f"{times} 次用 {names.get(name, name)}" for name, times in counted.most_common())


def _check(
    labels: np.ndarray, predicted: np.ndarray, classes: int | None, confidence: np.ndarray | None = None
) -> None:
    sizes = [len(array) for array in (labels, predicted, confidence) if array is not None]
    if len(set(sizes)) != 1 or sizes[0] == 0:
        raise UserError(f"标签、预测与置信度须一一对应且不为空，而其长度为 {sizes}：请检查它们是否来自同一测试集。")
    if classes is not None and max(np.max(labels), np.max(predicted)) >= classes:
        raise UserError(f"类别编号须小于类别数 {classes}，而数据中出现了 {max(np.max(labels), np.max(predicted))}。")
