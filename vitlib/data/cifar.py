"""Public CIFAR-10: the course's split rebuilt from it, and the long-tailed sets of the papers."""

import contextlib
import http.client
import io
import os
import socket
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from vitlib.data.cache import Pack, cached, is_cached
from vitlib.data.course import find, load_course
from vitlib.data.course_split import read_split
from vitlib.data.decode import decode_files
from vitlib.data.long_tail import SEED, lt_counts, lt_ratios, told
from vitlib.data.names import CIFAR10_CHINESE
from vitlib.data.sets import Dataset, TestSet, TrainSet, pick
from vitlib.data.tree import REASONS, reason
from vitlib.errors import UserError
from vitlib.paths import cache_dir, data_dirs

# As in torchvision's CIFAR10, whose import takes seconds that only a download or a first read needs.
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"  # in the archive
KEY = ("cifar10", ARCHIVE_MD5)

TIMEOUT = 10.0  # seconds without an answer that count as no connection
TRAIN_IMAGES = 50_000
MANUAL = f"也可以自己下载 {ARCHIVE} 放进 data/ 文件夹，或者使用课程数据、DATA=synthetic（合成数据）"


class NoConnection(UserError):
    """CIFAR-10 is neither on this machine nor to be had from the network."""


def at_hand() -> bool:
    """Whether CIFAR-10 can be had without the network: decoded in the cache, or in a data folder."""
    return is_cached(*KEY) or _local() is not None


def reachable(url: str | None = None, timeout: float = TIMEOUT) -> bool:
    """Whether the server that has CIFAR-10 answers within ``timeout`` seconds."""
    answered = threading.Event()

    def probe() -> None:
        request = urllib.request.Request(url or URL, method="HEAD")
        with contextlib.suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(request, timeout=timeout).close()
            answered.set()

    # In a thread that can be left behind: looking up a name has no time limit of its own.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def load_cifar10(size: int = 32) -> Dataset:
    """Rebuild the course's data set from public CIFAR-10: pixel for pixel the same, in the same order.

    The course's files are JPEGs by Pillow at its default quality, 75, so every image takes that step.
    Raises NoConnection where CIFAR-10 is neither here nor to be had.
    """
    packs = {name: _rebuild(name, size) for name in ("train", "test")}
    return Dataset.of(
        "cifar10",
        TrainSet(packs["train"].images, packs["train"].labels),
        TestSet(packs["test"].images, packs["test"].labels),
        CIFAR10_CHINESE,
        "由公开的 CIFAR-10 训练集按课程的划分重建（含 JPEG 重新编码），与课程数据逐像素相同",
    )


def load_long_tailed(factor: float, kind: str, size: int = 32, skip: bool = False) -> Dataset:
    """Load CIFAR-10-LT: class counts that fall by ``factor``, exponentially or in one step.

    Cui et al., Class-Balanced Loss (CVPR 2019), section 5.1, and Cao et al., LDAM (NeurIPS 2019),
    section 4.2: n_c = floor(5000 (1/factor)^(c/9)), or 5000 for the first half of the classes and
    5000/factor for the others; the test set is CIFAR-10's 10,000 images. Without CIFAR-10 the course's
    training set is cut with the same factor, and the course's test set is kept.
    """
    ratios = lt_ratios(factor, kind)
    found = None if at_hand() else find()
    if found is not None and not reachable():
        course = load_course(found, size, skip)
        source, full, test = "课程的训练集", course.train, course.test
        warnings, skipped = course.warnings, course.skipped
    else:
        pack = _lossless()
        images = pack.images
        if size != 32:
            images = interpolate(images, (size, size), mode="bicubic", antialias=True)
        source, warnings, skipped = "CIFAR-10 的训练集", (), ()
        full = TrainSet(images[:TRAIN_IMAGES], pack.labels[:TRAIN_IMAGES])
        test = TestSet(images[TRAIN_IMAGES:], pack.labels[TRAIN_IMAGES:])
    counts = lt_counts(full.counts(len(ratios)), ratios)
    if min(counts) == 0:
        raise UserError("不平衡因子太大，最少的类一张图像也不剩。请把因子改小。")
    train = full.take(pick(full.labels, counts, SEED))
    provenance = f"由{source}{told(factor, kind)}，测试集 {len(test):,} 张"
    return Dataset.of("cifar10-lt", train, test, CIFAR10_CHINESE, provenance, warnings, skipped)


def _local() -> Path | None:
    candidates = [place / name for place in data_dirs() for name in (FOLDER, ARCHIVE)]
    return next((path for path in candidates if os.path.exists(path)), None)


def _lossless() -> Pack:
    """Return CIFAR-10 itself: 50,000 training images, then 10,000 test images."""
    return cached(_fetch, *KEY)


def _fetch() -> Pack:
    """Read CIFAR-10 where it lies, else download it.

    torchvision checks every file's MD5 before it unpickles it, so nothing else is ever unpickled.
    """
    local = _local()
    try:
        if local is not None and local.is_dir():
            return _unpickle(local.parent)
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="cifar10-") as folder:
            if local is None:
                _download(folder)
            else:
                _extract(local, folder)
            return _unpickle(Path(folder))
    except (OSError, RuntimeError) as error:
        if local is None and getattr(error, "errno", None) not in REASONS:
            raise NoConnection(f"下载 CIFAR-10 时连接中断（{error}）。请检查网络后再试；{MANUAL}。") from error
        if isinstance(error, RuntimeError):
            raise UserError(f"{local} 不完整或被改动过（校验和不符）。请删除后重新下载；{MANUAL}。") from error
        raise UserError(
            f"无法读取或存放 CIFAR-10（{local or cache_dir()}）：{reason(error)}。"
            f"请检查空间和权限，或用环境变量 CIFAR_VIT_CACHE 另指定缓存文件夹。"
        ) from error


def _download(folder: str) -> None:
    if not reachable():
        raise NoConnection(f"连不上下载 CIFAR-10 的服务器（等待至多 {TIMEOUT:.0f} 秒）。请检查网络后再试；{MANUAL}。")
    from torchvision.datasets import CIFAR10

    limit = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none: a server gone silent would hang it
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some versions print their progress
            CIFAR10(folder, download=True)
    finally:
        socket.setdefaulttimeout(limit)


def _extract(archive: Path, folder: str) -> None:
    from torchvision.datasets.utils import check_integrity, extract_archive

    if not check_integrity(str(archive), ARCHIVE_MD5):
        raise RuntimeError("checksum")
    extract_archive(str(archive), folder)


def _unpickle(root: Path) -> Pack:
    from torchvision.datasets import CIFAR10

    halves = [CIFAR10(root, train=train) for train in (True, False)]
    images = torch.from_numpy(np.concatenate([half.data for half in halves]).transpose(0, 3, 1, 2))
    return Pack(images.contiguous(), torch.tensor([label for half in halves for label in half.targets]))


def _rebuild(name: str, size: int) -> Pack:
    index, labels = read_split()[name]

    def make() -> Pack:
        pixels = _lossless().images.permute(0, 2, 3, 1).contiguous().numpy()

        def encode(i: int) -> bytes:
            file = io.BytesIO()
            Image.fromarray(pixels[i]).save(file, "JPEG")
            return file.getvalue()

        images, _ = decode_files(encode, index.tolist(), size)
        return Pack(torch.from_numpy(images), torch.from_numpy(labels))

    return cached(make, "course", name, size, index.tolist(), *KEY)
