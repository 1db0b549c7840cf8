"""Images in memory: the three set types, and the data set that every experiment starts from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitlib.errors import UserError

Images = TypeVar("Images", bound="LabeledImages")


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images and labels, in memory on the CPU.

    ``images`` is uint8 (N, 3, H, W) in 0-255 RGB, ``labels`` int64 (N,) in 0..K-1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Self:
        """Return the images at ``index`` (int64) as a set of the same type."""
        return type(self)(self.images[index], self.labels[index])

    def sample(self, count: int) -> Self:
        """Return ``count`` images in which the classes take turns, the first of each to begin with.

        Files come sorted by class: the first images of a set would all be of one.
        """
        turns = F.one_hot(self.labels).cumsum(0).gather(1, self.labels[:, None]).flatten()
        return self.take(torch.argsort(turns, stable=True)[:count])

    def counts(self, num_classes: int) -> tuple[int, ...]:
        """Return the number of images of each class."""
        return tuple(torch.bincount(self.labels, minlength=num_classes).tolist())


# Three sibling types, none a subclass of another: what trains or selects a model takes a TrainSet
# or a ValSet, so a test set handed to it is a type error and not a silent leak.
class TrainSet(LabeledImages):
    """Images that a model may be fitted on."""


class ValSet(LabeledImages):
    """Images held out of the training set, to choose between models."""


class TestSet(LabeledImages):
    """Images that are read once, at the end."""

    __test__ = False  # not a test class, whatever pytest makes of the name


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, the same whatever source it came from.

    ``name`` is course, cifar10, cifar10-lt, folder or synthetic. ``fingerprint`` is 16 hex digits of
    pixels, labels, their order and class names: equal for equal content, whatever the source.
    ``provenance`` says in Chinese words, for the report, where the images come from.
    """

    name: str
    train: TrainSet
    test: TestSet
    class_names: tuple[str, ...]
    fingerprint: str
    provenance: str
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        train: TrainSet,
        test: TestSet,
        class_names: Sequence[str],
        provenance: str,
        warnings: Sequence[str] = (),
        skipped: Sequence[str] = (),
    ) -> Self:
        """Build a data set and compute its fingerprint; raises UserError for a class without training images."""
        counts = train.counts(len(class_names))
        if absent := "”“".join(name for name, n in zip(class_names, counts, strict=True) if not n):
            raise UserError(
                f"训练集里没有类别“{absent}”的图像（{provenance}）。请补上这些类别的训练图像，或连同测试图像一起删除。"
            )
        digest = fingerprint(train, test, class_names)
        return cls(name, train, test, tuple(class_names), digest, provenance, tuple(warnings), tuple(skipped))

    @property
    def synthetic(self) -> bool:
        """Whether the images are generated; the report then says so beside every result."""
        return self.name == "synthetic"

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.train.images.shape[-1]

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Number of training images of each class."""
        return self.train.counts(self.num_classes)

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple[TrainSet, ValSet]:
        """Hold out ``fraction`` of every class of the training set for validation.

        Both parts keep the class ratios (to the nearest image) and together are the training set.
        A class of two images or more is in both parts; a class of one stays in the training part.
        Raises UserError unless 0 < fraction < 1.
        """
        if not 0 < fraction < 1:
            raise UserError(f"验证集的比例应在 0 与 1 之间，得到的是 {fraction}。请改成例如 0.1。")
        chosen = pick(self.train.labels, held_out(self.class_counts, fraction), seed)
        kept = torch.ones(len(self.train), dtype=torch.bool)
        kept[chosen] = False
        rest = self.train.take(kept.nonzero().flatten())
        return rest, ValSet(self.train.images[chosen], self.train.labels[chosen])

    def subset(self, train: int | None, test: int | None = None, seed: int = 0) -> "Dataset":
        """Draw ``train`` and ``test`` images, keeping the class ratios and at least one of each class.

        None, or a number not below what there is, keeps all images. The subset has a fingerprint of
        its own, and its provenance says its size. Raises UserError for fewer images than classes.
        """
        fewer_train = _thin(self.train, train, self.num_classes, seed)
        fewer_test = _thin(self.test, test, self.num_classes, seed)
        if fewer_train is self.train and fewer_test is self.test:
            return self
        sizes = "，".join(
            f"{what} {len(few):,} 张（共 {len(whole):,} 张）" if few is not whole else f"{what}全部 {len(few):,} 张"
            for what, few, whole in (("训练图像", fewer_train, self.train), ("测试图像", fewer_test, self.test))
        )
        return replace(
            self,
            train=fewer_train,
            test=fewer_test,
            fingerprint=fingerprint(fewer_train, fewer_test, self.class_names),
            provenance=f"{self.provenance}；按类别比例抽取的子集：{sizes}，随机种子 {seed}",
        )


def fingerprint(train: LabeledImages, test: LabeledImages, class_names: Sequence[str]) -> str:
    """Return 16 hex digits of the pixels, labels and class names of a data set."""
    digest = hashlib.sha256(json.dumps(list(class_names)).encode())
    for part in (train, test):
        digest.update(json.dumps(list(part.images.shape)).encode())
        digest.update(part.images.contiguous().numpy().data)
        digest.update(part.labels.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def held_out(class_counts: Sequence[int], fraction: float = 0.1) -> list[int]:
    """Return how many images of each class :meth:`Dataset.split` holds out for validation."""
    return [min(max(int(n * fraction + 0.5), 1), n - 1) if n else 0 for n in class_counts]


def pick(labels: Tensor, counts: Sequence[int], seed: int) -> Tensor:
    """Choose ``counts[c]`` images of each class c at random; return their indices, ascending."""
    # RandomState and not default_rng: numpy promises that its stream never changes, so a seed means
    # the same images on every machine. It also leaves torch's global generator alone.
    random = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        members = (labels == label).nonzero().flatten().numpy()
        chosen.append(random.permutation(members)[:count])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def quotas(counts: Sequence[int], total: int) -> list[int]:
    """Share ``total`` images among classes of ``counts`` images, in proportion, at least one each.

    Every non-empty class gets one image; the others are shared by largest remainder.
    """
    present = sum(n > 0 for n in counts)
    pool, spare = sum(counts) - present, total - present
    parts = [divmod(spare * (n - 1), pool) if n else (0, 0) for n in counts]
    result = [int(n > 0) + whole for n, (whole, _) in zip(counts, parts, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda c: -parts[c][1])
    for c in by_remainder[: total - sum(result)]:
        result[c] += 1
    return result


def _thin(images: Images, total: int | None, num_classes: int, seed: int) -> Images:
    if total is None or total >= len(images):
        return images
    counts = images.counts(num_classes)
    if total < (least := sum(n > 0 for n in counts)):
        raise UserError(f"子集只要 {total} 张图像，少于类别数 {least}，会有类别一张也没有。请至少取 {least} 张。")
    return images.take(pick(images.labels, quotas(counts, total), seed))


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return what there is to say of a data set, ready for JSON."""
    train, test = dataset.class_counts, dataset.test.counts(dataset.num_classes)
    return {
        "name": dataset.name, "provenance": dataset.provenance, "synthetic": dataset.synthetic,
        "fingerprint": dataset.fingerprint, "image_size": dataset.image_size,
        "train_images": len(dataset.train), "test_images": len(dataset.test), "imbalance": max(train) / min(train),
        "classes": [
            {"id": c, "name": name, "train": train[c], "test": test[c]} for c, name in enumerate(dataset.class_names)
        ],
        "warnings": list(dataset.warnings), "skipped": list(dataset.skipped),
    }  # fmt: skip
