"""A folder or zip file of one's own, PATH/<class>/<image>, with or without train and test."""

import os
from collections.abc import Sequence

from vitlib.data.course import find, load_course
from vitlib.data.decode import load_part
from vitlib.data.names import class_ids
from vitlib.data.sets import Dataset, TestSet, TrainSet
from vitlib.data.tree import LAYOUT, open_tree
from vitlib.errors import UserError

TEST_FRACTION = 0.2  # held out of each class where the folder has no test part
SPLIT_SEED = 0


def load_folder(path: str | os.PathLike[str], size: int = 32, skip: bool = False) -> Dataset:
    """Load any classes of images; without train/test, a fifth of each class becomes the test set.

    A folder that holds the course's folders or zips is loaded as the course's data.
    """
    tree = open_tree(path)
    if tree.where.is_dir() and (found := find(tree.where)) is not None:
        return load_course(found, size, skip)
    divided = tree.has_parts()
    names = tuple(tree.classes("train" if divided else None))
    if len(names) < 2:
        raise UserError(f"{tree.where} 里只有一个类别“{names[0]}”，分类至少需要两个。{LAYOUT}。")
    ids = {name: c for c, name in enumerate(names)}
    pack = load_part(tree, "train" if divided else None, ids, size, skip)
    train, skipped, warnings = TrainSet(pack.images, pack.labels), pack.skipped, []
    if divided:
        pack = load_part(tree, "test", ids, size, skip)
        test, skipped = TestSet(pack.images, pack.labels), skipped + pack.skipped
        how = "按其中的 train 与 test 划分"
        warnings = [
            f"测试集没有类别“{name}”的图像" for name, n in zip(names, test.counts(len(names)), strict=True) if not n
        ]
    else:
        if lonely := [name for name, n in zip(names, train.counts(len(names)), strict=True) if n < 2]:
            raise UserError(
                f"{tree.where} 的类别“{lonely[0]}”只有 1 张图像，无法既训练又测试。请至少放 2 张，或自己分成 train 与 test。"
            )
        whole = Dataset("folder", train, TestSet(train.images, train.labels), names, "", "")
        train, held_out = whole.split(TEST_FRACTION, SPLIT_SEED)
        test = TestSet(held_out.images, held_out.labels)
        how = f"每类随机留出 {100 * TEST_FRACTION:.0f} % 作测试集（随机种子 {SPLIT_SEED}）"
    where = f"自备图像“{tree.where.resolve().name}”，{len(names)} 类，{how}，缩放为 {size}×{size} 像素"
    return Dataset.of("folder", train, test, names, where, warnings, skipped)


def load_images(
    path: str | os.PathLike[str], class_names: Sequence[str], *, image_size: int = 32, skip_unreadable: bool = False
) -> TestSet:
    """Load a folder or zip of class folders to evaluate a model of ``class_names`` on.

    Folders are named by class, by number or by CIFAR-10's English name; where there is a part ``test``,
    or the course's test images, that is read. Returns uint8 (N, 3, image_size, image_size) and labels.
    Raises UserError for a folder that names no class and for all bad input of :func:`vitlib.data.load`.
    """
    tree = open_tree(path)
    if tree.where.is_dir() and (found := find(tree.where)) is not None:
        tree = open_tree(found[1])
    part = "test" if tree.has_parts() else None
    ids = class_ids(list(tree.classes(part)), class_names)
    pack = load_part(tree, part, ids, image_size, skip_unreadable)
    return TestSet(pack.images, pack.labels)
