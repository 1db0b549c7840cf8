"""Which of CIFAR-10's training images are the course's, and in which split.

A file's name in the course's data is its index in CIFAR-10's training set. ``course_split.npz`` holds
one byte for each of the 50,000 indices: 0 for an image that the course leaves out, 1 + class for the
training split, 11 + class for the test split. Made from the course's own folders or zips by

    python docs/course_split.py FOLDER
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("course_split.npz")
TRAIN, TEST = 1, 11  # what is added to the class


def read_split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return indices and classes, int64 both, of ``train`` and ``test``, by class and then by index."""
    with np.load(FILE, allow_pickle=False) as file:
        codes = file["codes"].astype(np.int64)
    split = {}
    for name, first in (("train", TRAIN), ("test", TEST)):
        index = np.flatnonzero((codes >= first) & (codes < first + 10))
        index = index[np.argsort(codes[index], kind="stable")]
        split[name] = (index, codes[index] - first)
    return split
