"""Where the package finds its own files and keeps what it makes."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_SHARE = PACKAGE / "_share"


def share(name: str) -> Path:
    """Return a folder that travels with the package: ``notebooks`` or ``report``.

    In a checkout (also an editable install) it is the top-level folder; a wheel carries a
    copy under ``vitlib/_share``.
    """
    return (_SHARE if _SHARE.is_dir() else PACKAGE.parent) / name


def checkout() -> Path | None:
    """Return the repository's root, or None when running from an installed wheel."""
    return None if _SHARE.is_dir() else PACKAGE.parent


def data_dirs() -> list[Path]:
    """Return the places where the course's data is looked for, in order.

    ``CIFAR_VIT_DATA`` comes first, then ``data/`` in the checkout and in the working folder.
    """
    root = checkout()
    places = [os.environ.get("CIFAR_VIT_DATA"), root and root / "data", "data"]
    return [Path(place).expanduser() for place in places if place]


def cache_dir() -> Path:
    """Return the folder for decoded data, ``CIFAR_VIT_CACHE`` or the user's cache folder."""
    if chosen := os.environ.get("CIFAR_VIT_CACHE"):
        return Path(chosen).expanduser()
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "cifar-vit"


def build_dir() -> Path:
    """Return the folder for what a build makes: ``build/`` in the checkout, else in the working folder."""
    return (checkout() or Path.cwd()) / "build"


def runs_dir() -> Path:
    """Return the local run store, ``CIFAR_VIT_RUNS`` or ``build/runs``."""
    chosen = os.environ.get("CIFAR_VIT_RUNS")
    return Path(chosen).expanduser() if chosen else build_dir() / "runs"


def results_dir() -> Path:
    """Return the published run records that go with the project."""
    return share("report") / "results"


def weights_dir() -> Path:
    """Return the published weights that go with the project."""
    return share("report") / "weights"
