"""Write which of CIFAR-10's images are the course's, from its folders or zips: ``python docs/course_split.py FOLDER``."""

import sys
from pathlib import Path

import numpy as np

from vitlib.data.course import find
from vitlib.data.course_split import FILE, TEST, TRAIN
from vitlib.data.tree import open_tree


def write_split(folder: Path, target: Path = FILE) -> None:
    """Write the list that :func:`vitlib.data.course_split.read_split` reads from the course's data in ``folder``."""
    found = find(folder)
    if found is None:
        raise SystemExit(f"no course data in {folder}")
    codes = np.zeros(50_000, np.uint8)
    for path, first in zip(found, (TRAIN, TEST), strict=True):
        for name, files in open_tree(path).classes().items():
            codes[[int(Path(file).stem) for file in files]] = first + int(name)
    np.savez_compressed(target, codes=codes)


if __name__ == "__main__":
    write_split(Path(sys.argv[1]))
