"""The course's images: two folders or two zip files that students get from the course."""

import os
from pathlib import Path

from vitlib.data.decode import load_part
from vitlib.data.names import CIFAR10_CHINESE
from vitlib.data.sets import Dataset, LabeledImages, TestSet, TrainSet
from vitlib.data.tree import open_tree
from vitlib.errors import UserError
from vitlib.paths import data_dirs

TRAIN_NAMES = ("CIFAR10_imbalanced", "CIFAR10_imbalance")
TEST_NAMES = ("CIFAR10_balance", "CIFAR10_balanced")
TRAIN_COUNTS = (4435, 4189, 3065, 4191, 4513, 3717, 3513, 3249, 2685, 2023)
TEST_COUNTS = (487,) * 10
IDS = {str(c): c for c in range(10)}


def find(places: list[Path] | None = None) -> tuple[Path, Path] | None:
    """Find the training and the test images, as folders or zip files, in the first place that has them.

    Looks in ``places``, by default CIFAR_VIT_DATA and data/. Returns None where there is neither.
    Raises UserError where only one of the two is found, or CIFAR_VIT_DATA does not exist.
    """
    if (
        places is None
        and (chosen := os.environ.get("CIFAR_VIT_DATA"))
        and not Path(chosen).expanduser().exists()
    ):
        raise UserError(f"环境变量 CIFAR_VIT_DATA 指向的文件夹 {chosen} 不存在。请改正或取消这个变量。")
    for place in data_dirs() if places is None else places:
        train, test = _first(place, TRAIN_NAMES), _first(place, TEST_NAMES)
        if train and test:
            return train, test
        if train or test:
            missing = "、".join(TEST_NAMES if train else TRAIN_NAMES)
            raise UserError(
                f"{place} 里只有 {(train or test or place).name}，缺少另一半课程数据。"
                f"请把 {missing}（其中之一，文件夹或 .zip）也放进去。"
            )
    return None


def load_course(found: tuple[Path, Path], size: int = 32, skip: bool = False) -> Dataset:
    """Load the course's training and test images; counts unlike the known ones become warnings."""
    packs = [load_part(open_tree(path), None, IDS, size, skip) for path in found]
    train = TrainSet(packs[0].images, packs[0].labels)
    test = TestSet(packs[1].images, packs[1].labels)
    kinds = "、".join(dict.fromkeys("zip 文件" if path.is_file() else "文件夹" for path in found))
    return Dataset.of(
        "course",
        train,
        test,
        CIFAR10_CHINESE,
        f"课程提供的 CIFAR-10 子集（训练集 {found[0].stem}，测试集 {found[1].stem}，读自{kinds}）",
        [*_differences("训练集", train, TRAIN_COUNTS), *_differences("测试集", test, TEST_COUNTS)],
        packs[0].skipped + packs[1].skipped,
    )


def _first(place: Path, names: tuple[str, ...]) -> Path | None:
    candidates = [place / (name + suffix) for name in names for suffix in ("", ".zip")]
    return next((path for path in candidates if path.exists()), None)


def _differences(what: str, part: LabeledImages, known: tuple[int, ...]) -> list[str]:
    return [
        f"课程{what}的类别 {c}（{CIFAR10_CHINESE[c]}）应有 {should:,} 张图像，实际读到 {n:,} 张"
        for c, (n, should) in enumerate(zip(part.counts(10), known, strict=True))
        if n != should
    ]
