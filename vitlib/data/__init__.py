"""Images in memory, from five sources: the course, CIFAR-10, its long-tailed cuts, a folder, a generator.

    data = load("auto")
    train, val = data.split(0.1, seed=0)

Everything that is wrong with the input is a :class:`vitlib.errors.UserError`.
"""

import os
from dataclasses import replace
from pathlib import Path

from vitlib.data.course import find, load_course
from vitlib.data.decode import read_image
from vitlib.data.folder import load_folder, load_images
from vitlib.data.long_tail import long_tail
from vitlib.data.sets import Dataset, LabeledImages, TestSet, TrainSet, ValSet, describe
from vitlib.errors import UserError

__all__ = [
    "Dataset",
    "LabeledImages",
    "TestSet",
    "TrainSet",
    "ValSet",
    "describe",
    "load",
    "load_images",
    "long_tail",
    "read_image",
]

SOURCES = ("auto", "course", "cifar10", "cifar10-lt", "synthetic")
WHERE = "CIFAR_VIT_DATA 所指的文件夹和 data/ 文件夹"


def load(
    source: str | os.PathLike[str] = "auto",
    *,
    image_size: int = 32,
    imbalance_factor: float = 100,
    imbalance: str = "exp",
    skip_unreadable: bool = False,
) -> Dataset:
    """Load a data set.

    ``source`` is course, cifar10 (the course's split rebuilt from public CIFAR-10), cifar10-lt,
    synthetic, or the path of a folder or zip; auto is the course's data where it is found, else CIFAR-10
    where it is here or can be downloaded, else synthetic. ``imbalance_factor`` and ``imbalance`` (exp or
    step) shape cifar10-lt. ``skip_unreadable`` leaves out damaged images and lists them in ``skipped``.
    Raises UserError, in one Chinese sentence with the file, the reason and the remedy.
    """
    if image_size < 8:
        raise UserError(f"图像边长至少为 8 像素，得到的是 {image_size}。请改大，例如 32。")
    if source == "synthetic":
        return _synthetic(image_size)
    if source in ("auto", "course"):
        if (found := find()) is not None:
            return load_course(found, image_size, skip_unreadable)
        if source == "course":
            raise UserError(
                f"没有找到课程数据（找过 {WHERE}）。请放入 CIFAR10_imbalanced 与 CIFAR10_balance（文件夹或 .zip）。"
            )
    if source in ("auto", "cifar10", "cifar10-lt"):
        from vitlib.data import cifar

        if source == "cifar10-lt":
            return cifar.load_long_tailed(imbalance_factor, imbalance, image_size, skip_unreadable)
        try:
            return cifar.load_cifar10(image_size)
        except cifar.NoConnection:
            if source == "cifar10":
                raise
        why = f"没有找到课程数据（找过 {WHERE}），也无法下载 CIFAR-10，因此使用合成数据"
        return replace(_synthetic(image_size), warnings=(why,))
    if Path(source).name == str(source) and not os.path.lexists(source):
        raise UserError(f"没有名为“{source}”的数据。请用 {'、'.join(SOURCES)}，或者一个文件夹、zip 文件的路径。")
    return load_folder(source, image_size, skip_unreadable)


def _synthetic(size: int) -> Dataset:
    from vitlib.data.synthetic import load_synthetic

    return load_synthetic(size)
