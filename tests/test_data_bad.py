"""Bad input: each case is refused with one clear sentence that names the file, the reason, the remedy."""

import contextlib
import io
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
from data_helpers import class_files, encoded, own_places, pixels, refused, write_folder, write_zip  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitlib.data import load, load_images, tree

CLASSES = ["猫", "狗"]
resource = pytest.importorskip("resource", reason="limits of memory are POSIX's")


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "own", class_files(CLASSES, 5))


@contextlib.contextmanager
def as_nobody():
    """Give up root's right to read everything, where the tests run as root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_missing_folder(tmp_path):
    refused(lambda: load(tmp_path / "nowhere"), tmp_path / "nowhere", "不存在")


def test_a_name_that_is_neither_source_nor_path():
    refused(lambda: load("cifar100"), "cifar100", "synthetic", "course")


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK\x03\x04 and then nothing")
    refused(lambda: load(tmp_path / "data.zip"), "data.zip", "zip")


def test_no_class_folder(tmp_path):
    write_folder(tmp_path / "flat", {"1.png": encoded(pixels(1)), "2.png": encoded(pixels(2))})
    refused(lambda: load(tmp_path / "flat"), "flat", "类别文件夹")


def test_one_class_only(tmp_path):
    write_folder(tmp_path / "one", class_files(["猫"]))
    refused(lambda: load(tmp_path / "one"), "猫", "至少需要两个")


def test_empty_class(folder):
    (folder / "鸟").mkdir()
    (folder / "鸟" / ".DS_Store").write_bytes(b"a file that nobody sees")
    refused(lambda: load(folder), "鸟", "空")


def test_empty_class_in_a_zip(tmp_path):
    path = write_zip(tmp_path / "own.zip", class_files(CLASSES) | {"鸟/": b""})
    refused(lambda: load(path), "鸟", "空")


def test_a_class_of_one_image_cannot_be_trained_and_tested(folder):
    write_folder(folder, {"鸟/1.png": encoded(pixels(1))})
    refused(lambda: load(folder), "鸟", "1 张")


def test_a_folder_inside_a_class(folder):
    write_folder(folder, {"猫/more/1.png": encoded(pixels(1))})
    refused(lambda: load(folder), "猫", "more")


def test_a_class_in_test_that_train_lacks(tmp_path):
    files = {f"train/{k}": v for k, v in class_files(CLASSES).items()}
    files |= {f"test/{k}": v for k, v in class_files([*CLASSES, "鸟"]).items()}
    refused(lambda: load(write_folder(tmp_path / "own", files)), "鸟", "猫")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_image(folder, kind):
    blob = encoded(Image.fromarray(pixels(1, (64, 64))), kind)
    name = f"坏.{kind.lower()}"
    write_folder(folder, {f"猫/{name}": blob[: len(blob) // 2]})
    refused(lambda: load(folder), folder / "猫" / name, "--skip-unreadable")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"only words", b"\xff\xd8\xff\xe0" + bytes(40)])
def test_not_an_image(folder, content):
    write_folder(folder, {"狗/坏.jpg": content})
    refused(lambda: load(folder), folder / "狗" / "坏.jpg", "共 1 个")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]), st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_whatever_is_damaged_is_an_image_or_a_user_error(tmp_path, kind, place, value, cut):
    from vitlib.data import read_image
    from vitlib.errors import UserError

    blob = bytearray(encoded(pixels(2), kind))
    place %= len(blob)
    blob[place] = value
    path = tmp_path / "damaged"
    path.write_bytes(blob[:place] if cut else blob)
    try:
        assert read_image(path).shape == (3, 32, 32)
    except UserError as error:
        assert "damaged" in str(error)


def test_an_image_that_unpacks_to_gigapixels(folder, monkeypatch):
    monkeypatch.setattr("vitlib.data.decode.MAX_PIXELS", 100 * 100)
    write_folder(folder, {"猫/巨.png": encoded(Image.new("1", (4000, 4000)))})
    refused(lambda: load(folder), "巨.png", "过大")


def test_unreadable_images_are_skipped_counted_and_listed_on_request(folder):
    whole = load(folder)
    write_folder(folder, {"猫/a.jpg": b"words", "狗/b.png": encoded(pixels(1))[:60]})
    message = refused(lambda: load(folder), "共 2 个")
    assert str(folder / "狗" / "b.png") in message or str(folder / "猫" / "a.jpg") in message
    for _ in range(2):  # decoded, then from the cache
        data = load(folder, skip_unreadable=True)
        assert [Path(line.split("：")[0]).name for line in data.skipped] == ["b.png", "a.jpg"]
        assert data.fingerprint == whole.fingerprint
    refused(lambda: load(folder), "共 2 个")  # what was skipped once is not forgiven from then on


def test_a_class_that_is_empty_after_skipping(folder):
    write_folder(folder, {"鸟/a.jpg": b"words", "鸟/b.jpg": b"words"})
    refused(lambda: load(folder, skip_unreadable=True), "鸟", "没有一张")


def test_link_loops(folder, tmp_path):
    (folder / "鸟").symlink_to(folder)
    refused(lambda: load(folder), "鸟", "链接")
    (folder / "鸟").unlink()
    (folder / "鸟").symlink_to(folder / "鸟")
    refused(lambda: load(folder), "鸟", "链接成环")
    self = tmp_path / "self"
    self.symlink_to(self)
    refused(lambda: load(self), "self", "链接成环")


def test_links_that_lead_somewhere_are_followed(folder, tmp_path):
    plain = load(folder).fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in CLASSES:
        (linked / name).symlink_to(moved / name)
    assert load(linked).fingerprint == plain
    (moved / "猫" / "gone.png").symlink_to(tmp_path / "deleted")
    refused(lambda: load(linked), "gone.png", "不存在")


def test_a_pipe_among_the_images_does_not_block(folder):
    os.mkfifo(folder / "猫" / "pipe.png")
    refused(lambda: load(folder), "pipe.png", "不是普通文件")


def test_a_tree_too_deep_for_class_folders(tmp_path):
    write_folder(tmp_path, {"/".join(["a"] * 9) + "/1.png": b"", "b/1.png": b""})
    refused(lambda: load(tmp_path), "层数")


def test_no_permission():
    with tempfile.TemporaryDirectory() as name:
        root = write_folder(Path(name) / "own", class_files(CLASSES, 5))
        for path in (Path(name), root, *root.iterdir()):
            path.chmod(0o755)
        os.environ["CIFAR_VIT_CACHE"] = str(Path(name) / "cache")
        (Path(name) / "cache").mkdir(mode=0o777)
        (Path(name) / "cache").chmod(0o777)
        secret = root / "猫" / "1.png"
        secret.chmod(0)
        with as_nobody():
            refused(lambda: load(root), secret, "没有访问权限")
        (root / "狗").chmod(0)
        with as_nobody():
            refused(lambda: load(root), root / "狗", "没有访问权限")
        archive = write_zip(Path(name) / "own.zip", class_files(CLASSES))
        archive.chmod(0)
        with as_nobody():
            refused(lambda: load(archive), archive, "没有访问权限")


@pytest.mark.parametrize("name", ["../猫/1.png", "猫/../../1.png", "/猫/1.png", "C:\\猫\\1.png", "..\\猫\\1.png"])
def test_a_zip_with_unsafe_paths(tmp_path, name):
    path = write_zip(tmp_path / "own.zip", class_files(CLASSES) | {name: b""})
    refused(lambda: load(path), path, "指向文件夹之外")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.zip"]


def test_a_zip_bomb_is_refused_unread(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", class_files(CLASSES) | {"猫/b.bmp": bytes(80 * 2**20)})
    assert path.stat().st_size < 2**20
    refused(lambda: load(path), path, "炸弹")


def test_a_zip_of_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "MAX_ENTRIES", 5)
    refused(lambda: load(write_zip(tmp_path / "own.zip", class_files(CLASSES, 3))), "6 个文件")
    refused(lambda: load(write_folder(tmp_path / "own", class_files(CLASSES, 3))), "超过 5 个")


def test_a_member_that_lies_about_its_size(tmp_path):
    path = write_zip(tmp_path / "own.zip", class_files(CLASSES) | {"猫/b.bmp": bytes(2**20)})
    blob = bytearray(path.read_bytes())
    start = blob.rindex(b"PK\x01\x02", 0, blob.rindex("猫/b.bmp".encode()))
    blob[start + 24 : start + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(blob)
    refused(lambda: load(path), "b.bmp", "损坏")


def test_a_zip_with_a_password(tmp_path):
    path = write_zip(tmp_path / "own.zip", class_files(CLASSES))
    blob = bytearray(path.read_bytes())
    blob[blob.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(blob)
    refused(lambda: load(path), path, "密码")


def test_a_zip_with_damaged_members(tmp_path):
    path = write_zip(tmp_path / "own.zip", class_files(CLASSES, 6))
    blob = bytearray(path.read_bytes())
    blob[blob.index("猫/0.png".encode()) + 30] ^= 0xFF
    path.write_bytes(blob)
    refused(lambda: load(path), "0.png", "损坏")
    assert len(load(path, skip_unreadable=True).skipped) == 1
    path.write_bytes(blob[: len(blob) // 2])
    refused(lambda: load(path), path)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_whatever_is_damaged_in_a_zip_is_loaded_or_refused(tmp_path, place, value):
    from vitlib.errors import UserError

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in class_files(CLASSES).items():
            archive.writestr(name, data)
    blob = bytearray(file.getvalue())
    blob[place % len(blob)] = value
    path = tmp_path / "own.zip"
    path.write_bytes(blob)
    with contextlib.suppress(UserError):
        assert load(path).num_classes >= 2


def test_no_space_for_the_cache(folder, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a write fails half-way
    try:
        refused(lambda: load(folder), tmp_path / "cache", "空间", "CIFAR_VIT_CACHE")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "cache").iterdir()) == []  # nothing half-written
    assert load(folder).num_classes == 2


def test_a_cache_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CIFAR_VIT_CACHE", str(tmp_path / "file" / "cache"))
    refused(lambda: load(folder), "CIFAR_VIT_CACHE")


def test_an_image_size_too_small():
    refused(lambda: load("synthetic", image_size=4), 4)


def test_folders_to_evaluate_that_name_no_class(folder):
    refused(lambda: load_images(folder, ["猫", "鸟"]), "狗", "鸟")
    refused(lambda: load_images(folder / "none", ["猫", "狗"]), "none", "不存在")
    shutil.rmtree(folder / "猫")
    (folder / "猫").mkdir()
    refused(lambda: load_images(folder, CLASSES), "猫", "空")
