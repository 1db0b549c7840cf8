"""Carrying runs from one machine to another: a few files of bounded size, verified on arrival."""

import hashlib
import io
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from vitlib import checkpoint
from vitlib.errors import UserError
from vitlib.paths import checkout
from vitlib.record import Run, read_record
from vitlib.store import Store

MOST_FILES, FILE_BYTES, TOTAL_BYTES = 8, 16 * 2**20, 64 * 2**20
# the only names in an export: nothing else is written on arrival, whatever a zip says
_MEMBER = re.compile(
    r"([0-9a-f]{16}(?:/record\.json|/weights\.safetensors|\.work/checkpoint\.safetensors))(\.[0-7]of[2-8])?"
)
# what zipfile, zlib and json raise on damaged bytes
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError, ValueError, AttributeError, OSError)
_HEADER = 1024  # of each member, its entries in the zip's directory and the manifest included


def export(store: Store, keys: Sequence[str], folder: Path) -> list[str]:
    """Pack runs into at most 8 zips of at most 16 MiB, 64 MiB together, and return what did not fit.

    Records go first, then weights, then the checkpoints of runs under way; a file too large for a zip goes in
    parts, all of them or none. ``keys`` gives the runs in the order of their importance. Zips of an earlier export
    go when the new ones are all written; they stay where there is nothing to pack.
    """
    keys = [*dict.fromkeys(keys)]
    folder.mkdir(parents=True, exist_ok=True)
    files = "{}/record.json", "{}/weights.safetensors", "{}.work/checkpoint.safetensors"
    wanted = [store.root / name.format(key) for name in files for key in keys]
    packs: list[dict[str, bytes]] = [{} for _ in range(MOST_FILES)]
    room = [FILE_BYTES - _HEADER] * MOST_FILES
    left_out, left = [], TOTAL_BYTES
    for path in filter(Path.exists, wanted):
        # read at once: a training under way may put another checkpoint in its place
        name, size = path.relative_to(store.root).as_posix(), len(content := path.read_bytes())
        cuts = [*range(0, size, FILE_BYTES - 2 * _HEADER), size] if size else [0, 0]
        free, places = [*room], []
        for start, end in pairwise(cuts):
            place = next((i for i, space in enumerate(free) if end - start + _HEADER <= space), None)
            if place is not None:
                places.append(place)
                free[place] -= end - start + _HEADER
        needed = size + _HEADER * (len(cuts) - 1)
        if len(places) < len(cuts) - 1 or needed > left:
            left_out.append(f"{name}（{size / 2**20:.1f} MiB）")
            continue
        room, left = free, left - needed
        for i, (place, (start, end)) in enumerate(zip(places, pairwise(cuts), strict=True)):
            packs[place][f"{name}.{i}of{len(places)}" if len(places) > 1 else name] = content[start:end]
    with TemporaryDirectory(dir=folder) as ready:
        for i, pack in enumerate(filter(None, packs)):
            checkpoint.write_atomic(Path(ready) / f"runs-{i}.zip", _zip(pack))
        for old in folder.glob("runs-[0-7].zip") if any(packs) else ():
            old.unlink()
        for new in Path(ready).iterdir():
            new.rename(folder / new.name)
    return left_out


def _zip(pack: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # weights hardly shrink
        for name, content in pack.items():
            archive.writestr(name, content)
        archive.writestr("manifest.json", json.dumps({k: hashlib.sha256(v).hexdigest() for k, v in pack.items()}))
    return buffer.getvalue()


def import_runs(store: Store, folder: Path, publish: bool | None = None) -> list[Run]:
    """Verify the zips that :func:`export` wrote and merge them into the store; return the runs they hold.

    Finished runs that the store has stay as they are, and so do those under way that have come no further in the zips.
    With ``publish`` (the default in a checkout) the records are copied to the published ones. Raises UserError when a
    file is damaged; nothing of it is taken then.
    """
    archives = sorted(folder.glob("runs-*.zip"))
    if not archives:
        raise UserError(f"{folder} 里没有 runs-*.zip，请给出 vitlib sweep --export 写出的文件夹。")
    publish = checkout() is not None if publish is None else publish
    with TemporaryDirectory() as temporary:
        stage = Path(temporary)
        for path in archives:
            _unpack(path, stage)
        _join(stage)
        runs = [read_record(path, published=False) for path in sorted(stage.glob("*/record.json"))]
        for run in runs:
            if run.path.parent.name != run.key:
                raise UserError(f"{folder} 中 {run.path.parent.name} 的记录属于另一次运行 {run.key}，请重新导出。")
        store.root.mkdir(parents=True, exist_ok=True)
        for source in sorted(stage.iterdir()):
            if not any((source / name).exists() for name in ("record.json", "checkpoint.safetensors")):
                continue  # weights whose record is in a zip that did not come, or parts of a checkpoint
            key, target = source.name.removesuffix(".work"), store.root / source.name
            with store.lock(key):  # a training of the same run under way ends first, and then has it
                if (store.root / key / "record.json").exists() or (target.exists() and _step(source) <= _step(target)):
                    continue
                partial = target.with_name(f".{source.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(source, partial)
                if target.suffix or (source / "weights.safetensors").exists():  # what has come is further in all
                    shutil.rmtree(store.root / f"{key}.work", ignore_errors=True)
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


def _join(stage: Path) -> None:
    """Put the files that came in parts together; one of which a part is missing is left away."""
    for first in sorted(stage.glob("*/*.0of*")):
        name, _, count = first.name.rpartition(".0of")
        parts = [first.with_name(f"{name}.{i}of{count}") for i in range(int(count))]
        if all(part.exists() for part in parts):
            first.with_name(name).write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in stage.glob("*/*of*"):
        part.unlink()


def _step(work: Path) -> int:
    """Return how many steps the checkpoint of a run under way has behind it, -1 where there is none that can be read."""
    with suppress(UserError, LookupError):
        return int(checkpoint.load(work / "checkpoint.safetensors", story_only=True)[1]["step"])
    return -1


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > FILE_BYTES:  # no export holds one so large: perhaps a zip bomb
        raise ValueError(f"{name} 过大")
    return archive.read(name)
