"""Public CIFAR-10 without a network: a folder of CIFAR-10's shape, made here."""

import importlib.util
import io
import os
import socket
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from data_helpers import cifar_folder, encoded, own_places, refused, write_zip  # noqa: F401

from vitlib.data import cifar, course_split, load
from vitlib.data.course import TEST_COUNTS, TRAIN_COUNTS, find
from vitlib.data.names import CIFAR10_CHINESE
from vitlib.errors import UserError

REAL = os.environ.get("CIFAR_VIT_DATA", "")
HANGS = 30.0  # seconds after which a wait is one without an end, on the slowest machine


@pytest.fixture
def small_split(monkeypatch):
    """A course of 300 + 100 of the fake training images, their order in the file mixed."""
    index = np.random.RandomState(0).permutation(500)
    split = {}
    for name, part in (("train", index[:300]), ("test", index[300:400])):
        part = part[np.lexsort((part, part % 10))]
        split[name] = (part, part % 10)
    monkeypatch.setattr(cifar, "read_split", lambda: split)
    return split


def write_course(place, images, split):
    """Write zips as the course did: each image by Pillow's default JPEG, named by its index."""
    for name, part in (("CIFAR10_imbalanced", "train"), ("CIFAR10_balance", "test")):
        index, labels = split[part]
        files = {f"{c}/{i}.jpg": encoded(images[i], "JPEG") for i, c in zip(index, labels, strict=True)}
        write_zip(place / f"{name}.zip", files, prefix=f"{name}/")


# --------------------------------------------------------------- rebuild


def test_the_rebuilt_course_equals_the_course(tmp_path, monkeypatch, small_split):
    images, _ = cifar_folder(tmp_path / "data", monkeypatch)
    write_course(tmp_path / "course", images, small_split)
    rebuilt, course = load("cifar10"), load(tmp_path / "course")
    assert (rebuilt.name, course.name) == ("cifar10", "course")
    assert rebuilt.fingerprint == course.fingerprint
    assert rebuilt.class_names == CIFAR10_CHINESE and "重建" in rebuilt.provenance
    lossless = images[small_split["train"][0]].transpose(0, 3, 1, 2)
    assert (rebuilt.train.images.numpy() != lossless).any()  # the JPEG step did something
    bigger = [load(source, image_size=40).fingerprint for source in ("cifar10", tmp_path / "course")]
    assert bigger[0] == bigger[1] != course.fingerprint


@pytest.mark.slow
def test_the_rebuilt_course_equals_the_course_by_the_committed_list(tmp_path, monkeypatch):
    images, _ = cifar_folder(tmp_path / "data", monkeypatch, train=50_000, test=10)
    write_course(tmp_path / "course", images, course_split.read_split())
    rebuilt, course = load("cifar10"), load(tmp_path / "course")
    assert rebuilt.fingerprint == course.fingerprint and not course.warnings
    assert rebuilt.class_counts == TRAIN_COUNTS and rebuilt.test.counts(10) == TEST_COUNTS


def test_auto_prefers_the_course_then_cifar10(tmp_path, monkeypatch, small_split):
    images, _ = cifar_folder(tmp_path / "data", monkeypatch)
    assert load("auto").name == "cifar10"
    write_course(tmp_path / "data", images, small_split)
    assert load("auto").name == "course"


def test_once_decoded_the_folder_is_not_needed(tmp_path, monkeypatch, small_split):
    cifar_folder(tmp_path / "data", monkeypatch)
    first = load("cifar10").fingerprint
    (tmp_path / "data").rename(tmp_path / "gone")
    monkeypatch.setattr(cifar, "reachable", lambda *_: pytest.fail("asked the network"))
    assert cifar.at_hand() and load("cifar10").fingerprint == first
    assert load("cifar10-lt", imbalance_factor=10).test.counts(10) == (5,) * 10


def test_the_archive_in_the_data_folder_is_used(tmp_path, monkeypatch, small_split):
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import calculate_md5

    cifar_folder(tmp_path / "made", monkeypatch)
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "made" / CIFAR10.base_folder, CIFAR10.base_folder)
    refused(lambda: load("cifar10"), Path("data") / CIFAR10.filename, "校验和")  # not CIFAR-10's own checksum
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", calculate_md5(archive))
    assert load("cifar10").class_counts == tuple(np.bincount(small_split["train"][1]))
    assert not list((tmp_path / "cache").glob("cifar10-*"))


def test_batches_with_another_checksum_are_never_unpickled(tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    cifar_folder(tmp_path / "data", monkeypatch)
    import pickle

    (tmp_path / "data" / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(Trap()))
    refused(lambda: load("cifar10"), "cifar-10-batches-py", "校验和")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------- the course's list


def test_the_committed_list():
    assert course_split.FILE.stat().st_size <= 30_000
    split = course_split.read_split()
    for name, counts in (("train", TRAIN_COUNTS), ("test", TEST_COUNTS)):
        index, labels = split[name]
        assert tuple(np.bincount(labels)) == counts
        assert (np.lexsort((index, labels)) == np.arange(len(index))).all()
        assert index.max() < 50_000
    both = np.concatenate([split["train"][0], split["test"][0]])
    assert len(np.unique(both)) == len(both) == 40_450


def write_split(folder, target):
    """The maintainer's script, which is in no package."""
    place = Path(__file__).parents[1] / "docs" / "course_split.py"
    spec = importlib.util.spec_from_file_location("script", place)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.write_split(folder, target)


def test_the_list_is_written_from_the_course(tmp_path, small_split):
    write_course(tmp_path, np.zeros((500, 32, 32, 3), np.uint8), small_split)
    write_split(tmp_path, tmp_path / "list.npz")
    original, course_split.FILE = course_split.FILE, tmp_path / "list.npz"
    try:
        again = course_split.read_split()
    finally:
        course_split.FILE = original
    for name, (index, labels) in small_split.items():
        assert (again[name][0] == index).all() and (again[name][1] == labels).all()


@pytest.mark.skipif(not REAL, reason="needs the course's data in CIFAR_VIT_DATA")
def test_the_committed_list_is_the_course_s(tmp_path):
    assert find(Path(REAL))
    write_split(Path(REAL), tmp_path / "list.npz")
    made, committed = (np.load(path) for path in (tmp_path / "list.npz", course_split.FILE))  # zip headers may differ
    assert made.files == committed.files and np.array_equal(made["codes"], committed["codes"])


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="needs the course's data in CIFAR_VIT_DATA")
def test_the_course_s_real_data(monkeypatch):
    monkeypatch.setenv("CIFAR_VIT_DATA", REAL)
    data = load("course")
    assert data.class_counts == TRAIN_COUNTS and data.test.counts(10) == TEST_COUNTS
    assert not data.warnings and not data.skipped
    assert data.fingerprint == "10ef408157da1a4e"
    monkeypatch.setattr("vitlib.data.decode.decode_files", None)  # the second time nothing is decoded
    assert load("course").fingerprint == data.fingerprint


# ------------------------------------------------------------ long tailed


@pytest.mark.parametrize(
    "factor, kind, counts",
    [
        (100, "exp", [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (50, "exp", [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]),
        (10, "exp", [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        (1, "exp", [5000] * 10),
        (100, "step", [5000] * 5 + [50] * 5),
        (10, "step", [5000] * 5 + [500] * 5),
    ],
)
def test_the_papers_counts(factor, kind, counts):
    import torch

    from vitlib.data import TrainSet

    full = TrainSet(torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8), torch.arange(50_000) % 10)
    assert cifar.lt_counts(full.counts(10), cifar.lt_ratios(factor, kind)) == counts


def test_a_long_tailed_set_of_lossless_images(tmp_path, monkeypatch):
    images, _ = cifar_folder(tmp_path / "data", monkeypatch, train=500, test=50)
    data = load("cifar10-lt", imbalance_factor=10)
    assert data.name == "cifar10-lt" and data.class_counts[0] == 50 and data.class_counts[-1] == 5
    assert (data.test.images.numpy() == images[500:].transpose(0, 3, 1, 2)).all()
    known = {image.tobytes() for image in images[:500].transpose(0, 3, 1, 2)}
    assert {image.numpy().tobytes() for image in data.train.images} <= known
    assert "不平衡因子 10" in data.provenance and "CIFAR-10 的训练集" in data.provenance
    step = load("cifar10-lt", imbalance_factor=10, imbalance="step")
    assert step.class_counts == (50,) * 5 + (5,) * 5 and step.fingerprint != data.fingerprint
    assert load("cifar10-lt", imbalance_factor=10, image_size=16).image_size == 16


def test_without_cifar10_the_course_is_cut(tmp_path, monkeypatch, small_split):
    write_course(
        tmp_path / "data",
        np.stack([np.full((32, 32, 3), i % 251, np.uint8) for i in range(500)]),
        small_split,
    )
    monkeypatch.setattr(cifar, "reachable", lambda *_: False)
    course, data = load("course"), load("cifar10-lt", imbalance_factor=4)
    ratio = np.array(data.class_counts) / np.array(cifar.lt_ratios(4, "exp"))
    assert all(a <= b for a, b in zip(data.class_counts, course.class_counts, strict=True))
    assert ratio.max() - ratio.min() <= 4 and "课程的训练集" in data.provenance
    assert len(data.test) == len(course.test)


def test_bad_factors():
    refused(lambda: load("cifar10-lt", imbalance_factor=0.5), 0.5)
    refused(lambda: load("cifar10-lt", imbalance="linear"), "linear", "exp")


def test_a_factor_that_empties_a_class(tmp_path, monkeypatch):
    cifar_folder(tmp_path / "data", monkeypatch)
    refused(lambda: load("cifar10-lt", imbalance_factor=1000), "太大")


# ---------------------------------------------------------------- network


def test_the_names_and_the_checksum_are_torchvision_s():
    from torchvision.datasets import CIFAR10

    ours = (cifar.URL, cifar.ARCHIVE, cifar.ARCHIVE_MD5, cifar.FOLDER)
    assert ours == (CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.base_folder)


def test_a_server_that_never_answers_is_no_connection():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        start = time.perf_counter()
        assert not cifar.reachable(f"http://127.0.0.1:{deaf.getsockname()[1]}/x", timeout=0.5)
        assert 0.4 < time.perf_counter() - start < HANGS


def test_a_name_that_is_looked_up_for_ever_is_no_connection(monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [free.wait(2 * HANGS)][:0])
    start = time.perf_counter()
    assert not cifar.reachable("http://cifar.invalid/x", timeout=0.3)
    assert time.perf_counter() - start < HANGS
    free.set()


def test_a_closed_port_is_known_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        start = time.perf_counter()
        assert not cifar.reachable(f"http://127.0.0.1:{closed.getsockname()[1]}/x")
        assert time.perf_counter() - start < HANGS


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine that answers HEAD, and GET with what the test sets."""
    from torchvision.datasets import CIFAR10

    class Handler(BaseHTTPRequestHandler):
        body, stall = b"", False

        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(Handler.body)))
            self.end_headers()
            self.wfile.write(Handler.body[: 1000 if Handler.stall else None])
            self.wfile.flush()
            if Handler.stall:
                time.sleep(3)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/{CIFAR10.filename}"
        monkeypatch.setattr(CIFAR10, "url", url)
        monkeypatch.setattr(cifar, "URL", url)
        yield Handler
        running.shutdown()


def test_cifar10_is_downloaded(tmp_path, monkeypatch, server, small_split, capfd):
    import hashlib

    from torchvision.datasets import CIFAR10

    cifar_folder(tmp_path / "made", monkeypatch)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(tmp_path / "made" / CIFAR10.base_folder, CIFAR10.base_folder)
    server.body = file.getvalue()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(server.body).hexdigest())
    assert load("auto").name == "cifar10"
    assert capfd.readouterr().out == ""  # --json owns standard output
    assert not list((tmp_path / "cache").glob("cifar10-*"))  # the archive is not kept


@pytest.mark.parametrize("fault", ["stall", "cut"])
def test_a_download_that_fails_is_no_connection(tmp_path, monkeypatch, server, fault):
    monkeypatch.setattr(cifar, "TIMEOUT", 1.0)
    server.body, server.stall = b"x" * 10**6, fault == "stall"
    start = time.perf_counter()
    refused(lambda: load("cifar10"), "连接中断", "cifar-10-python.tar.gz")
    assert time.perf_counter() - start < HANGS
    assert not list((tmp_path / "cache").iterdir())
    assert socket.getdefaulttimeout() is None
    server.stall = False
    assert load("auto").synthetic
    with pytest.raises(UserError):
        load("cifar10-lt")
