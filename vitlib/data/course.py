"""The course's images: two folders or two zip files that students get from the course."""

import os
from pathlib import Path

from vitlib.data.decode import load_part
from vitlib.data.names import CIFAR10_CHINESE
from vitlib.data.sets import Dataset, LabeledImages, TestSet, TrainSet
from vitlib.data.tree import listing, open_tree
from vitlib.errors import UserError
from vitlib.paths import data_dirs

TRAIN_NAMES = ("CIFAR10_imbalanced", "CIFAR10_imbalance")
TEST_NAMES = ("CIFAR10_balance", "CIFAR10_balanced")
TRAIN_COUNTS = (4435, 4189, 3065, 4191, 4513, 3717, 3513, 3249, 2685, 2023)
TEST_COUNTS = (487,) * 10
IDS = {str(c): c for c in range(10)}


def find(place: Path | None = None) -> tuple[Path, Path] | None:
    """Find the training and the test images, as folders or zip files, in ``place``.

    Without ``place``, looks in CIFAR_VIT_DATA, then in data/. Returns None where there is neither.
    Raises UserError where only one of the two is found, or where the place cannot be read.
    """
    chosen = place or os.environ.get("CIFAR_VIT_DATA")
    for folder in [place] if place else data_dirs():
        if not chosen and not os.path.isdir(folder):
            continue  # data/ need not be there, a place that was named must
        if chosen and not place and not os.path.isdir(folder):
            raise UserError(f"环境变量 CIFAR_VIT_DATA 指的文件夹 {folder} 不存在。请改正这个变量，或去掉它。")
        names, chosen = listing(folder), None
        train, test = _first(names, TRAIN_NAMES), _first(names, TEST_NAMES)
        if train and test:
            return folder / train, folder / test
        if train or test:
            missing = "、".join(TEST_NAMES if train else TRAIN_NAMES)
            raise UserError(
                f"{folder} 里只有 {train or test}，缺少另一半课程数据。"
                f"请把 {missing}（其中之一，文件夹或 .zip）也放进去。"
            )
    return None


def load_course(found: tuple[Path, Path], size: int = 32, skip: bool = False) -> Dataset:
    """Load the course's training and test images; counts unlike the known ones become warnings."""
    packs = [load_part(open_tree(path), None, IDS, size, skip) for path in found]
    train = TrainSet(packs[0].images, packs[0].labels)
    test = TestSet(packs[1].images, packs[1].labels)
    kinds = "、".join(dict.fromkeys("压缩文件" if path.is_file() else "文件夹" for path in found))
    return Dataset.of(
        "course",
        train,
        test,
        CIFAR10_CHINESE,
        f"课程提供的 CIFAR-10 子集（训练集 {found[0].stem}，测试集 {found[1].stem}，读自{kinds}）",
        [*_differences("训练集", train, TRAIN_COUNTS), *_differences("测试集", test, TEST_COUNTS)],
        packs[0].skipped + packs[1].skipped,
    )


def _first(there: list[str], names: tuple[str, ...]) -> str | None:
    wanted = [name + suffix for name in names for suffix in ("", ".zip")]
    return next((name for name in wanted if name in there), None)


def _differences(what: str, part: LabeledImages, known: tuple[int, ...]) -> list[str]:
    return [
        f"课程{what}的类别 {c}（{CIFAR10_CHINESE[c]}）应有 {should:,} 张图像，实际读到 {n:,} 张"
        for c, (n, should) in enumerate(zip(part.counts(10), known, strict=True))
        if n != should
    ]
