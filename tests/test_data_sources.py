"""Own folders and zips, the course's layout, images to evaluate, the generated set, and the cache."""

import os
import sys

import numpy as np
import pytest
import torch
from data_helpers import class_files, encoded, own_places, pixels, refused, write_folder, write_zip  # noqa: F401

from vitlib.data import cache, cifar, load, load_images
from vitlib.data.course import TEST_COUNTS, TRAIN_COUNTS
from vitlib.data.names import CIFAR10_CHINESE, CIFAR10_ENGLISH

DIGITS = [str(c) for c in range(10)]


def course_files(each, kind="JPEG"):
    return {name.replace(".jpeg", ".jpg"): data for name, data in class_files(DIGITS, each, kind).items()}


def split_files(train, test):
    return {f"train/{k}": v for k, v in train.items()} | {f"test/{k}": v for k, v in test.items()}


# ------------------------------------------------------------ own folder


def test_a_folder_without_parts_gives_a_fifth_of_each_class_to_the_test(tmp_path):
    root = write_folder(tmp_path / "own", class_files(["猫", "狗", "鸟10", "鸟9"], 10))
    data = load(root)
    assert data.name == "folder" and data.class_names == ("狗", "猫", "鸟9", "鸟10")
    assert data.class_counts == (8,) * 4 and data.test.counts(4) == (2,) * 4
    assert "20 %" in data.provenance and "own" in data.provenance and str(tmp_path) not in data.provenance
    together = torch.cat([data.train.images, data.test.images]).flatten(1)
    assert len(together.unique(dim=0)) == 40  # no image in both
    assert load(root).fingerprint == data.fingerprint


def test_a_folder_with_parts_keeps_them(tmp_path):
    files = split_files(class_files(["b", "a"], {"a": 2, "b": 5}), class_files(["a"], 3))
    data = load(write_folder(tmp_path / "own", files), image_size=16)
    assert data.class_names == ("a", "b") and data.class_counts == (2, 5)
    assert data.test.counts(2) == (3, 0) and data.image_size == 16
    assert len(data.warnings) == 1 and "b" in data.warnings[0]


def test_a_zip_is_the_folder_it_holds(tmp_path):
    files = split_files(class_files(["猫", "狗"], 4), class_files(["猫", "狗"], 2))
    folder = load(write_folder(tmp_path / "own", files))
    junk = {
        "__MACOSX/own/._x": b"x",
        "own/.DS_Store": b"x",
        "own/train/猫/Thumbs.db": b"x",
        "own/READ.txt": b"x",
    }
    zipped = load(write_zip(tmp_path / "own.zip", {f"own/{k}": v for k, v in files.items()} | junk))
    assert zipped.fingerprint == folder.fingerprint and not zipped.skipped


def test_class_names_in_a_zip_from_a_chinese_windows(tmp_path):
    path = write_zip(tmp_path / "own.zip", class_files(["AA", "BB"], 5))
    blob = path.read_bytes().replace(b"AA/", "猫".encode("gbk") + b"/").replace(b"BB/", "狗".encode("gbk") + b"/")
    path.write_bytes(blob)
    assert set(load(path).class_names) == {"猫", "狗"}


@pytest.mark.skipif(sys.platform != "linux", reason="the file system takes no name that is not UTF-8")
def test_names_in_gbk_are_read_from_a_folder_unpacked_elsewhere(tmp_path):
    # of one Chinese character in GBK some are, by chance, letters in UTF-8 (猫 is è): those nobody can tell
    root = os.fsencode(tmp_path / "own")
    for name in ("鸟", "狗"):
        folder = os.path.join(root, name.encode("gbk"))
        os.makedirs(folder)
        for i, content in enumerate(class_files([name], 5).values()):
            with open(os.path.join(folder, f"图{i}.png".encode("gbk")), "wb") as file:
                file.write(content)
    data = load(tmp_path / "own")
    assert set(data.class_names) == {"鸟", "狗"} and len(data.train) + len(data.test) == 10


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system holds one name in one normal form")
def test_class_names_stay_as_they_are_and_one_name_twice_is_one_class(tmp_path):
    names = [
        "大　熊猫",
        "dog\u00a0x",
        "e\u0301te",
        "\u00e9te",
    ]  # a wide space, a hard one, one name in two normal forms
    data = load(write_folder(tmp_path / "own", class_files(names, 5)))
    assert set(data.class_names) == {"大　熊猫", "dog\u00a0x", "\u00e9te"} and len(data.train) + len(data.test) == 20


def test_mixed_formats_and_sizes_in_one_folder(tmp_path):
    files = class_files(["a", "b"], 2)
    files |= {
        "a/x.jpg": encoded(pixels(1, (50, 20)), "JPEG"),
        "b/y.webp": encoded(pixels(2, (7, 90)), "WEBP"),
    }
    data = load(write_folder(tmp_path / "own", files), image_size=24)
    assert data.train.images.shape[1:] == (3, 24, 24) and data.train.images.dtype == torch.uint8
    assert len(data.train) + len(data.test) == 6


# ---------------------------------------------------------------- course


def test_the_course_is_found_as_folders_or_zips_under_either_name(tmp_path, monkeypatch):
    train, test = course_files(3), course_files(2)
    prints = set()
    for i, (a, b) in enumerate([("CIFAR10_imbalanced", "CIFAR10_balance"), ("CIFAR10_imbalance", "CIFAR10_balanced")]):
        folder = tmp_path / f"folders{i}"
        write_folder(folder / a, train)
        write_folder(folder / b, test)
        zips = tmp_path / f"zips{i}"
        write_zip(zips / f"{a}.zip", train, prefix=f"{a}/")
        write_zip(zips / f"{b}.zip", test, prefix=f"{b}/")
        for place in (folder, zips):
            monkeypatch.setenv("CIFAR_VIT_DATA", str(place))
            for source in ("course", "auto", place):
                data = load(source)
                assert data.name == "course" and data.class_names == CIFAR10_CHINESE
                assert ("压缩文件" in data.provenance) == (place is zips)
                prints.add(data.fingerprint)
    assert len(prints) == 1


def test_the_course_is_found_in_the_data_folder(tmp_path):
    write_folder(tmp_path / "data" / "CIFAR10_imbalanced" / "CIFAR10_imbalanced", course_files(2))
    write_zip(tmp_path / "data" / "CIFAR10_balance.zip", course_files(1))
    assert load("auto").class_counts == (2,) * 10


def test_files_are_ordered_by_number_so_that_a_rebuild_is_equal(tmp_path):
    files = {f"{c}/{i}.png": encoded(np.full((32, 32, 3), i, np.uint8)) for c in range(10) for i in (10, 9, 200)}
    write_folder(tmp_path / "data" / "CIFAR10_imbalanced", files)
    write_folder(tmp_path / "data" / "CIFAR10_balance", files)
    data = load("course")
    assert data.train.images[:, 0, 0, 0].tolist() == [9, 10, 200] * 10
    assert data.train.labels.tolist() == sorted(data.train.labels.tolist())


def test_counts_unlike_the_known_ones_are_warnings_that_name_the_class(tmp_path, monkeypatch):
    monkeypatch.setattr("vitlib.data.course.TRAIN_COUNTS", (2,) * 10)
    monkeypatch.setattr("vitlib.data.course.TEST_COUNTS", (1,) * 10)
    train = course_files(dict.fromkeys(DIGITS, 2) | {"3": 1})
    write_folder(tmp_path / "data" / "CIFAR10_imbalanced", train)
    write_folder(tmp_path / "data" / "CIFAR10_balance", course_files(1))
    (warning,) = load("course").warnings
    assert "猫" in warning and "类别 3" in warning and "应有 2 张" in warning and "1 张" in warning


def test_the_known_counts():
    assert sum(TRAIN_COUNTS) == 35_580 and sum(TEST_COUNTS) == 4_870
    assert max(TRAIN_COUNTS) / min(TRAIN_COUNTS) == pytest.approx(2.23, abs=0.005)


def test_half_of_the_course_is_refused(tmp_path, monkeypatch):
    write_folder(tmp_path / "data" / "CIFAR10_balance", course_files(1))
    refused(lambda: load("auto"), "CIFAR10_imbalanced", "data")


def test_the_course_is_nowhere(tmp_path, monkeypatch):
    refused(lambda: load("course"), "CIFAR_VIT_DATA", "CIFAR10_imbalanced")
    monkeypatch.setenv("CIFAR_VIT_DATA", str(tmp_path / "typo"))
    for source in ("course", "auto"):
        refused(lambda source=source: load(source), "typo", "不存在")


def test_a_class_of_the_course_that_only_the_test_has(tmp_path):
    train = {name: data for name, data in course_files(2).items() if not name.startswith("4/")}
    write_folder(tmp_path / "data" / "CIFAR10_imbalanced", train)
    write_folder(tmp_path / "data" / "CIFAR10_balance", course_files(1))
    refused(lambda: load("course"), "鹿", "训练集里没有")


# -------------------------------------------------------------- evaluate


@pytest.mark.parametrize("names", [DIGITS, CIFAR10_ENGLISH, CIFAR10_CHINESE, [n.upper() for n in CIFAR10_ENGLISH]])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_to_evaluate_are_named_by_number_or_name(tmp_path, names, kind):
    files = class_files([names[3], names[7]], {names[3]: 2, names[7]: 1})
    path = write_folder(tmp_path / "x", files) if kind == "folder" else write_zip(tmp_path / "x.zip", files, "x/")
    images = load_images(path, CIFAR10_CHINESE)
    assert images.labels.tolist() == [3, 3, 7] and images.images.shape == (3, 3, 32, 32)


def test_images_to_evaluate_by_own_names(tmp_path):
    path = write_folder(tmp_path / "x", class_files(["rose", "1"]))
    assert load_images(path, ["tulip", "lily", "rose"]).counts(3) == (0, 3, 3)
    refused(lambda: load_images(path, ["tulip", "rose", "lily"][:1]), "rose")


def test_images_to_evaluate_are_the_test_part_where_there_is_one(tmp_path):
    root = write_folder(tmp_path / "x", split_files(class_files(["a", "b"], 4), class_files(["a", "b"], 2)))
    data = load(root)
    assert torch.equal(load_images(root, data.class_names).images, data.test.images)
    write_folder(tmp_path / "data" / "CIFAR10_imbalanced", course_files(2))
    write_zip(tmp_path / "data" / "CIFAR10_balance.zip", course_files(1))
    assert len(load_images(tmp_path / "data", CIFAR10_CHINESE)) == 10


# ------------------------------------------------------------- synthetic


def accuracy_of_a_linear_model(data):
    """Test accuracy of ridge regression on pixels, at the penalty that the test set likes best."""
    train, test = (part.images.flatten(1).float() / 255 - 0.5 for part in (data.train, data.test))
    target = torch.nn.functional.one_hot(data.train.labels, 10).float()
    centre, mean = train.mean(0), target.mean(0)
    gram, moment = (train - centre).T @ (train - centre), (train - centre).T @ (target - mean)
    best = 0.0
    for penalty in (300, 3000):
        weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram)), moment)
        best = max(best, ((test - centre) @ weight + mean).argmax(1).eq(data.test.labels).double().mean().item())
    return best


def test_the_synthetic_set():
    data = load("synthetic")
    assert data.synthetic and data.name == "synthetic" and "合成数据" in data.provenance
    assert data.class_counts == tuple(round(n / 10 + 1e-9) for n in TRAIN_COUNTS)
    assert data.test.counts(10) == (100,) * 10
    # Golden: the same images on every machine, or its records could not be compared.
    assert data.fingerprint == "9ea0674fa578b73e"
    assert 0.1 < accuracy_of_a_linear_model(data) < 0.6
    mirrored = torch.cat([data.train.images, data.test.images]).flatten(1)
    assert len(mirrored.unique(dim=0)) == len(mirrored)  # no test image in the training set
    assert load("synthetic", image_size=16).image_size == 16


@pytest.mark.slow
def test_a_small_vit_learns_the_synthetic_set_in_six_epochs():
    from vitlib.models import create_model

    torch.manual_seed(0)
    data, epochs, batch = load("synthetic"), 6, 64
    model = create_model(
        "vit", d_model=96, num_heads=4, num_layers=3, ffn_hidden_channels=192, patch_size=8, dropout=0.0
    )
    steps = epochs * (len(data.train) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(epochs):
        for index in torch.randperm(len(data.train))[: steps // epochs * batch].split(batch):
            images = data.train.images[index].float() / 127.5 - 1
            loss = torch.nn.functional.cross_entropy(model(images), data.train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = model(data.test.images.float() / 127.5 - 1).argmax(1) == data.test.labels
    assert right.double().mean() > 0.85


# ------------------------------------------------------------------ auto


def test_without_data_and_network_auto_is_synthetic_and_says_why(monkeypatch):
    monkeypatch.setattr(cifar, "reachable", lambda *_: False)
    data = load("auto")
    assert data.synthetic and any("合成数据" in line for line in data.warnings)
    refused(lambda: load("cifar10"), "10 秒", "cifar-10-python.tar.gz")


# ----------------------------------------------------------------- cache


@pytest.fixture
def own(tmp_path):
    return write_folder(tmp_path / "own", class_files(["a", "b"], 5))


def decodings(monkeypatch):
    """Count the images that are decoded from now on."""
    from vitlib.data import decode

    seen, original = [], decode.decode_image
    monkeypatch.setattr(decode, "decode_image", lambda *a: (seen.append(1), original(*a))[1])
    return seen


def test_the_second_load_decodes_nothing(own, monkeypatch):
    seen = decodings(monkeypatch)
    first = load(own)
    assert len(seen) == 10
    again = load(own)
    assert len(seen) == 10 and again.fingerprint == first.fingerprint
    assert torch.equal(again.train.images, first.train.images) and again.skipped == first.skipped
    load(own, image_size=16)
    assert len(seen) == 20  # another size is another entry


def test_a_changed_file_is_decoded_again(own, monkeypatch):
    before = load(own).fingerprint
    path = own / "a" / "0.png"
    stat = path.stat()
    path.write_bytes(encoded(pixels(77)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert load(own).fingerprint != before
    zipped = write_zip(own.with_suffix(".zip"), class_files(["a", "b"], 5))
    before = load(zipped).fingerprint
    write_zip(zipped, class_files(["b", "a"], 5))
    assert load(zipped).fingerprint != before


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "words"])
def test_a_damaged_cache_is_made_again(own, tmp_path, monkeypatch, damage):
    good = load(own)
    (entry,) = (tmp_path / "cache").iterdir()
    blob = bytearray(entry.read_bytes())
    if damage == "flip":
        blob[-100] ^= 1
    entry.write_bytes({"cut": blob[:-7], "empty": b"", "flip": blob, "words": b"words" * 99}[damage])
    seen = decodings(monkeypatch)
    assert load(own).fingerprint == good.fingerprint and len(seen) == 10
    assert load(own).fingerprint == good.fingerprint and len(seen) == 10


def test_the_cache_holds_no_pickle_and_leaves_no_partial_file(own, tmp_path):
    import safetensors.torch

    load(own)
    (entry,) = (tmp_path / "cache").iterdir()
    assert set(safetensors.torch.load_file(entry)) == {"images", "labels", "note", "digest"}
    assert cache.is_cached("nothing") is False
