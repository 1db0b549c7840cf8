"""Tensors and their story in one safetensors file, written so that a kill leaves the old file or the new."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitlib.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary neighbour of ``path`` to write to and rename it at the end; on failure nothing is left behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file at once or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def save(path: Path, tensors: Mapping[str, Tensor], story: Mapping[str, Any]) -> None:
    """Write tensors of any dtype and a JSON-able story to ``path``; raises OSError when the disk is full."""
    # tied or sliced storage is refused by safetensors, hence contiguous copies on the CPU
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the user's umask has it; safetensors keeps others out
            save_file(plain, temporary, metadata={"story": json.dumps(story)})
            temporary.chmod(mode)
    except SafetensorError as error:  # its I/O errors are not OSErrors
        raise OSError(f"{path}: {error}") from error


def load(path: Path, story_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU; none with ``story_only``) and the story of a file written by :func:`save`.

    Raises UserError when the file is missing or is no safetensors file. Nothing is unpickled.
    """
    try:
        with safe_open(path, framework="pt") as file:
            story = (file.metadata() or {}).get("story", "{}")
            names = () if story_only else file.keys()
            return {name: file.get_tensor(name) for name in names}, json.loads(story)
    except FileNotFoundError as error:
        raise UserError(f"找不到权重文件 {path}，请检查路径。") from error
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} 不是完好的 safetensors 文件（{error}），请重新取得它。") from error
