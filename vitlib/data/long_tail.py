"""Long-tailed cuts: class counts that fall by an imbalance factor, after Cui et al. 2019 and Cao et al. 2019."""

from collections.abc import Sequence
from dataclasses import replace

from vitlib.data.sets import Dataset, fingerprint, pick
from vitlib.errors import UserError

SEED = 0  # which images of a class stay
SHAPES = {"exp": "指数", "step": "阶梯"}


def long_tail(data: Dataset, factor: float, kind: str = "exp") -> Dataset:
    """Cut the training set to the imbalance ``factor`` in the classes' own order; the test set stays.

    The largest class is as large as the images allow. Every class keeps an image at least, so a very small
    set ends with a smaller factor. The cut has a fingerprint of its own, and its provenance tells the factor.
    """
    counts = [max(1, count) for count in lt_counts(data.class_counts, lt_ratios(factor, kind, data.num_classes))]
    train = data.train.take(pick(data.train.labels, counts, SEED))
    return replace(
        data,
        train=train,
        fingerprint=fingerprint(train, data.test, data.class_names),
        provenance=f"{data.provenance}；{told(factor, kind)}",
    )


def told(factor: float, kind: str = "exp") -> str:
    """Return the words by which a provenance tells of a cut."""
    return f"按不平衡因子 {factor:g} 截取的{SHAPES[kind]}型长尾数据"


def lt_ratios(factor: float, kind: str, num_classes: int = 10) -> list[float]:
    """Return each class's share of the largest class; raises UserError for a bad factor or kind."""
    if not 1 <= factor < float("inf"):
        raise UserError(f"不平衡因子是最多的类与最少的类的数量之比，不能是 {factor:g}。请给出不小于 1 的有限的数。")
    if kind not in SHAPES:
        raise UserError(f"没有名为“{kind}”的不平衡类型。请用 exp（指数）或 step（阶梯）。")
    if kind == "exp":
        return [(1 / factor) ** (c / max(1, num_classes - 1)) for c in range(num_classes)]
    return [1.0 if c < num_classes // 2 else 1 / factor for c in range(num_classes)]


def lt_counts(available: Sequence[int], ratios: Sequence[float]) -> list[int]:
    """Return floor(n * ratio) for each class, n being the largest head class that the ``available`` counts allow."""
    largest = int(min(n / ratio for n, ratio in zip(available, ratios, strict=True)))
    return [int(largest * ratio + 1e-9) for ratio in ratios]
