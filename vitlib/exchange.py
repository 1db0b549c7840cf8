"""Carrying runs from one machine to another: a few files of bounded size, verified on arrival."""

import hashlib
import io
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from vitlib import checkpoint
from vitlib.errors import UserError
from vitlib.paths import checkout
from vitlib.record import Run, read_record
from vitlib.store import Store

MOST_FILES, FILE_BYTES, TOTAL_BYTES = 8, 16 * 2**20, 64 * 2**20
# the only names in an export: nothing else is written on arrival, whatever a zip says
_MEMBER = re.compile(r"[0-9a-f]{16}(/record\.json|/weights\.safetensors|\.work/checkpoint\.safetensors)")
# what zipfile, zlib and json raise on damaged bytes
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError, ValueError, AttributeError, OSError)
_HEADER = 1024  # of each member, its entries in the zip's directory and the manifest included


def export(store: Store, keys: Sequence[str], folder: Path) -> list[str]:
    """Pack runs into at most 8 zips of at most 16 MiB, 64 MiB together, and return what did not fit.

    Records go first, then weights, then the checkpoints of runs under way. ``keys`` gives the runs in the
    order of their importance.
    """
    keys = [*dict.fromkeys(keys)]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("runs-*.zip"):
        old.unlink()
    wanted = [store.root / key / "record.json" for key in keys]
    wanted += [store.root / key / "weights.safetensors" for key in keys]
    wanted += [store.root / f"{key}.work" / "checkpoint.safetensors" for key in keys]
    packs: list[list[Path]] = []
    room: list[int] = []
    left_out, total = [], 0
    for path in filter(Path.exists, wanted):
        size = path.stat().st_size + _HEADER
        place = next((i for i, free in enumerate(room) if size <= free), None)
        fits = size <= FILE_BYTES and total + size <= TOTAL_BYTES
        if place is None and fits and len(packs) < MOST_FILES:
            packs.append([])
            room.append(FILE_BYTES - _HEADER)
            place = len(packs) - 1
            fits = size <= room[place]
        if place is None or not fits:
            left_out.append(f"{path.relative_to(store.root)}（{path.stat().st_size / 2**20:.1f} MiB）")
            continue
        packs[place].append(path)
        room[place] -= size
        total += size
    for i, paths in enumerate(packs):
        checkpoint.write_atomic(folder / f"runs-{i}.zip", _zip(store.root, paths))
    return left_out


def _zip(root: Path, paths: Sequence[Path]) -> bytes:
    buffer = io.BytesIO()
    sums = {}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # its parts are compressed already
        for path in paths:
            content, name = path.read_bytes(), path.relative_to(root).as_posix()
            sums[name] = hashlib.sha256(content).hexdigest()
            archive.writestr(name, content)
        archive.writestr("manifest.json", json.dumps(sums))
    return buffer.getvalue()


def import_runs(store: Store, folder: Path, publish: bool | None = None) -> list[Run]:
    """Verify the zips that :func:`export` wrote and merge them into the store; return the runs they hold.

    Runs that the store has stay as they are. With ``publish`` (the default in a checkout) the records
    are copied to the published ones. Raises UserError when a file is damaged; nothing of it is taken then.
    """
    archives = sorted(folder.glob("runs-*.zip"))
    if not archives:
        raise UserError(f"{folder} 里没有 runs-*.zip，请给出 vitlib sweep --export 写出的文件夹。")
    publish = checkout() is not None if publish is None else publish
    with TemporaryDirectory() as temporary:
        stage = Path(temporary)
        for path in archives:
            _unpack(path, stage)
        runs = [read_record(path, published=False) for path in sorted(stage.glob("*/record.json"))]
        for run in runs:
            if run.path.parent.name != run.key:
                raise UserError(
                    f"{folder} 中文件夹 {run.path.parent.name} 的记录属于另一次运行 {run.key}，请重新导出。"
                )
        store.root.mkdir(parents=True, exist_ok=True)
        for source in sorted(stage.iterdir()):
            if not source.name.endswith(".work") and not (source / "record.json").exists():
                continue  # weights whose record is in a zip that did not come
            key, target = source.name.removesuffix(".work"), store.root / source.name
            with store.lock(key):  # a training of the same run under way ends first, and then has it
                if (store.root / key / "record.json").exists() or target.exists():
                    continue
                partial = target.with_name(f".{source.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(source, partial)
                partial.rename(target)
        merged = [read_record(store.root / run.key / "record.json", published=publish) for run in runs]
    for run in merged:
        if publish:
            store.publish(run)
    return merged


def _unpack(path: Path, stage: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name, digest in json.loads(_read(archive, "manifest.json")).items():
                if not _MEMBER.fullmatch(name):
                    raise ValueError(f"不该有的文件名 {name!r}")
                content = _read(archive, name)
                if hashlib.sha256(content).hexdigest() != digest:
                    raise ValueError(f"{name} 的校验和不符")
                (stage / name).parent.mkdir(exist_ok=True)
                (stage / name).write_bytes(content)
    except _DAMAGE as error:
        raise UserError(f"{path} 已损坏（{error}），请重新传送；其中的运行一个也没有导入。") from error


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > FILE_BYTES:  # no export holds one so large: perhaps a zip bomb
        raise ValueError(f"{name} 过大")
    return archive.read(name)
