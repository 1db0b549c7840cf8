"""Small image folders and zips for the tests of the data."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from vitlib.errors import UserError


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """Give each test a cache of its own and no data but its own."""
    monkeypatch.setenv("CIFAR_VIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CIFAR_VIT_DATA", raising=False)
    monkeypatch.setattr("vitlib.paths.checkout", lambda: None)
    monkeypatch.chdir(tmp_path)


def pixels(seed, size=(32, 32)):
    """Return smooth random uint8 (height, width, 3), which a JPEG keeps recognisable."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR))


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def class_files(classes, each=3, kind="PNG"):
    """Return {"class/0.png": bytes, ...} with ``each`` images (or a dict of counts) per class."""
    counts = each if isinstance(each, dict) else dict.fromkeys(classes, each)
    return {
        f"{name}/{i}.{kind.lower()}": encoded(pixels(100 * c + i), kind)
        for c, name in enumerate(classes)
        for i in range(counts[name])
    }


def write_folder(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_zip(path, files, prefix=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(prefix + name, data)
    return path


def refused(action, *words):
    """Check that ``action`` raises a UserError of one clear sentence that holds all the words."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and message.endswith("。") and "请" in message, message
    for word in words:
        assert str(word) in message, f"“{word}” is not in: {message}"
    return message


def cifar_folder(root, monkeypatch, train=500, test=50):
    """Write fake CIFAR-10 python batches and make torchvision accept their checksums.

    Returns uint8 (train, 32, 32, 3) and the labels. The checksums are torchvision's own check, so
    the code under test is the code that runs in production.
    """
    import hashlib

    from torchvision.datasets import CIFAR10

    def write(name, content):
        data = pickle.dumps(content)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    folder = root / CIFAR10.base_folder
    images = np.stack([pixels(i) for i in range(train + test)])
    labels = [i % 10 for i in range(train + test)]
    flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    fifth = train // 5
    parts = [slice(i * fifth, (i + 1) * fifth) for i in range(5)] + [slice(train, None)]
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    sums = [
        [name, write(name, {"data": flat[part], "labels": labels[part]})]
        for name, part in zip(names, parts, strict=True)
    ]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr("vitlib.data.cifar.TRAIN_IMAGES", train)
    meta = write("batches.meta", {"label_names": [str(c) for c in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    return images, np.array(labels)
