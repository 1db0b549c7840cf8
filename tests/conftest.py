"""One thread, the CPU, a run store of its own, and examples that are the same in every run."""

import os

# before torch is imported: tiny tensors are faster on one thread, and sums come out the same everywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CIFAR_VIT_DEVICE", "cpu")

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def own_run_store(tmp_path_factory, monkeypatch):
    """Let no test find, or leave, a run in the checkout's own store."""
    monkeypatch.setenv("CIFAR_VIT_RUNS", str(tmp_path_factory.getbasetemp() / "runs"))


@pytest.fixture
def in_float32(monkeypatch):
    """Stay in float32 also where the processor computes in bfloat16."""
    for module in ("evaluate", "muon", "resize"):
        monkeypatch.setattr(f"vitlib.{module}.autocast_dtype", lambda device: None)


@pytest.fixture(scope="session")
def data():
    """The toy data set that most tests of training use."""
    from toy import toy

    return toy()


@pytest.fixture
def shelf(tmp_path):
    """An empty run store with a folder of published records of its own."""
    from vitlib.store import Store

    return Store(tmp_path / "runs", tmp_path / "published")
