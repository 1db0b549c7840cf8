"""Decoded images on disk, so that the next load takes a fraction of a second."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vitlib.checkpoint import write_atomic
from vitlib.data.tree import reason
from vitlib.errors import UserError
from vitlib.paths import cache_dir

FORMAT = 1  # raise when decoding or the layout of the file changes: old files are then left unread


@dataclass(frozen=True)
class Pack:
    """Decoded images: uint8 (N, 3, S, S), labels int64 (N,), and one line on each file left out."""

    images: Tensor
    labels: Tensor
    skipped: tuple[str, ...] = ()


def cached(make: Callable[[], Pack], *key: object) -> Pack:
    """Return the pack kept under ``key``, or make it and keep it.

    A damaged file is made again. Raises UserError where the cache cannot be written.
    """
    path = _path(key)
    if (pack := _read(path)) is None:
        _write(path, pack := make())
    return pack


def is_cached(*key: object) -> bool:
    """Whether a pack is kept under ``key``."""
    return _path(key).is_file()


def _path(key: tuple[object, ...]) -> Path:
    name = hashlib.sha256(json.dumps([FORMAT, *key]).encode()).hexdigest()[:32]
    return cache_dir() / f"images-{name}.safetensors"


def _digest(pack: Pack, note: bytes) -> bytes:
    digest = hashlib.sha256(note)
    for tensor in (pack.images, pack.labels):
        digest.update(f"{tensor.dtype}{tensor.shape}".encode())
        digest.update(tensor.numpy().data)
    return digest.digest()


def _read(path: Path) -> Pack | None:
    try:
        # From bytes, not mapped: a mapped file cannot be replaced on Windows.
        tensors = safetensors.torch.load(path.read_bytes())
        note = bytes(tensors["note"].numpy())
        pack = Pack(tensors["images"], tensors["labels"], tuple(json.loads(note)))
        intact = _digest(pack, note) == bytes(tensors["digest"].numpy())
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return pack if intact else None


def _write(path: Path, pack: Pack) -> None:
    note = json.dumps(pack.skipped).encode()
    tensors = {
        "images": pack.images,
        "labels": pack.labels,
        "note": torch.frombuffer(bytearray(note), dtype=torch.uint8),
        "digest": torch.frombuffer(bytearray(_digest(pack, note)), dtype=torch.uint8),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, safetensors.torch.save(tensors))
    except OSError as error:
        raise UserError(
            f"无法把解码后的图像（{pack.images.nbytes / 2**20:.0f} MiB）存入缓存文件夹 {path.parent}：{reason(error)}。"
            f"请腾出空间，或用环境变量 CIFAR_VIT_CACHE 另指定一个可以写入的文件夹。"
        ) from error
