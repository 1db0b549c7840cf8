"""Which of CIFAR-10's training images are the course's, and in which split.

A file's name in the course's data is its index in CIFAR-10's training set. ``course_split.npz`` holds
one byte for each of the 50,000 indices: 0 for an image that the course leaves out, 1 + class for the
training split, 11 + class for the test split. Made from the course's own folders or zips by

    python -m vitlib.data.course_split FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from vitlib.data.course import find
from vitlib.data.tree import open_tree

FILE = Path(__file__).with_name("course_split.npz")
_TRAIN, _TEST = 1, 11


def read_split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return indices and classes, int64 both, of ``train`` and ``test``, by class and then by index."""
    with np.load(FILE, allow_pickle=False) as file:
        codes = file["codes"].astype(np.int64)
    split = {}
    for name, first in (("train", _TRAIN), ("test", _TEST)):
        index = np.flatnonzero((codes >= first) & (codes < first + 10))
        index = index[np.argsort(codes[index], kind="stable")]
        split[name] = (index, codes[index] - first)
    return split


def write_split(folder: Path, target: Path = FILE) -> None:
    """Write the list from the course's data in ``folder``."""
    found = find(folder)
    if found is None:
        raise SystemExit(f"no course data in {folder}")
    codes = np.zeros(50_000, np.uint8)
    for path, first in zip(found, (_TRAIN, _TEST), strict=True):
        for name, files in open_tree(path).classes().items():
            codes[[int(Path(file).stem) for file in files]] = first + int(name)
    np.savez_compressed(target, codes=codes)


if __name__ == "__main__":
    write_split(Path(sys.argv[1]))
