"""How fast training images are made ready: the original's way, one picture at a time, against ours."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.timing import interleave
from vitlib.augment import Augment, EpochDraws, augment
from vitlib.data import Dataset

BATCH = 512


def images_per_second(data: Dataset, device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Return images a second, one value a round, of three ways to an augmented float batch on the device.

    All flip and cut resized boxes with the original's settings. ``original``: ImageFolder, PIL and torchvision's
    transforms in the DataLoader's own process (0 workers); ``original, workers``: the same with one worker a core;
    ``ours``: :func:`vitlib.augment.augment` on pixels already on the device.
    """
    with TemporaryDirectory() as folder:
        count = _write_pictures(data, Path(folder), 4 * BATCH)
        loaders = {
            "original": _loader(folder, 0),
            "original, workers": _loader(folder, os.cpu_count() or 1),
        }

        def read(loader: DataLoader) -> object:
            return [images.to(device) for images, _ in loader]

        tasks: dict[str, Callable[[], object]] = {name: partial(read, loader) for name, loader in loaders.items()}
        tasks["ours"] = _ours(data, count, device)
        times = interleave(tasks, device, seconds=seconds, least=3, label="数据通路")
    return {name: (count / values).tolist() for name, values in times.items()}


def _ours(data: Dataset, count: int, device: torch.device) -> Callable[[], object]:
    switches = Augment(flip=True, resized_crop=(0.8, 1.0, 0.9, 1.1))
    images, labels = data.train.images[:count].to(device), data.train.labels[:count].to(device)

    def epoch() -> None:
        draws = EpochDraws(0, 0, labels, count // BATCH)
        for first in range(0, count, BATCH):
            places = slice(first, first + BATCH)
            augment(images.index_select(0, draws.order[places]), draws.rows(places), switches, "half")

    return epoch


def _write_pictures(data: Dataset, folder: Path, most: int) -> int:
    """Write training images as the course hands them out, one JPEG (quality 75) each in a folder a class; return how many."""
    count = min(most, len(data.train))
    for index in range(count):
        place = folder / str(int(data.train.labels[index]))
        place.mkdir(exist_ok=True)
        pixels = data.train.images[index].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / f"{index}.jpg", quality=75)
    return count


def _loader(folder: str, workers: int) -> DataLoader:
    chain = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomResizedCrop(32, scale=(0.8, 1.0), ratio=(0.9, 1.1)),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    return DataLoader(
        ImageFolder(folder, chain), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
