"""The run store: every run is trained once, published by a rename, and never changed again.

``build/runs/<key>/`` holds record.json and, where they are small enough, weights.safetensors. A run under
way lives in ``<key>.work/`` with its checkpoint and a lock that dies with its process. Published records,
which go with the project, lie in ``report/results/`` and count as runs too.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from vitlib import checkpoint
from vitlib.data import Dataset
from vitlib.data.tree import reason
from vitlib.device import pick
from vitlib.engine import Trainer
from vitlib.errors import UserError
from vitlib.models import count
from vitlib.objectives import Ensemble
from vitlib.paths import PACKAGE, results_dir, runs_dir
from vitlib.progress import Progress
from vitlib.recipe import NUMERICS, Recipe
from vitlib.record import FORMAT, LIMIT, Run, answers, pack_bytes, pack_curve, read_record
from vitlib.state import Outcome, OutOfTime, build_model
from vitlib.weights import save_weights

KEEP_WEIGHTS = 64 * 2**20  # bytes: larger ones (the original's head) are not worth their room


class Store:
    """Finds, trains and publishes runs.

    root: the local store (default :func:`vitlib.paths.runs_dir`); published: the folder of published records.
    """

    def __init__(self, root: Path | None = None, published: Path | None = None) -> None:
        self.root, self.published = root or runs_dir(), published or results_dir()

    def find(self, recipe: Recipe, seed: int, data: Dataset, weights: bool = False) -> Run | None:
        """Return the finished run, or None; with ``weights`` only one that has them here, or failed to get any.

        Published weights do not count: they are rounded, and what starts from them would be another run.
        """
        key = recipe.key(seed, data.fingerprint)
        published = [*self.published.glob(f"*-{key}.json")]
        for path in [*self.root.glob(f"{key}/record.json"), *published]:
            run = read_record(path, published=bool(published))
            if not weights or run.weights_path() or run.failed:
                return run
        return None

    def get(
        self, recipe: Recipe, seed: int, data: Dataset, *, device: torch.device | None = None,
        deadline: float | None = None, show: bool = True, weights: bool = False,
    ) -> Run:  # fmt: skip
        """Return the finished run, training it (and the run it starts from) when it is missing.

        Raises vitlib.state.OutOfTime at ``deadline`` (a ``time.monotonic()`` moment), UserError when the
        store cannot be written.
        """
        if found := self.find(recipe, seed, data, weights):
            return found
        if data.num_classes > 256:
            raise UserError(f"数据有 {data.num_classes} 个类别，而运行记录至多容纳 256 个；请合并或减少类别。")
        device = device or pick()
        before = [
            (role, self.get(start, its_seed, data, device=device, deadline=deadline, show=show, weights=True))
            for role, start, its_seed in recipe.before(seed)
        ]
        start = next((run.load_state() for role, run in before if role == "init_from"), None)
        teachers = [run.load_model() for role, run in before if role == "teacher"]
        teacher = Ensemble(teachers) if teachers else None
        key = recipe.key(seed, data.fingerprint)
        work = self.root / f"{key}.work"
        try:
            with self.lock(key, deadline):
                if found := self.find(recipe, seed, data, weights):  # another process was faster
                    return found
                work.mkdir(exist_ok=True)
                outcome = Trainer(recipe, seed, data, device, work, start, teacher, deadline, show).run()
                return self._publish_local(work, make_record(recipe, seed, data, outcome), outcome, weights)
        except OSError as error:
            raise UserError(
                f"运行 {recipe.name} 的结果写不进 {self.root}（{reason(error)}）；"
                "请腾出空间或检查权限后重来，训练会从检查点继续。"
            ) from error

    def all(self) -> list[Run]:
        """Return every finished run, local and published, each once, by name and seed."""
        runs = {}
        for path in sorted(self.published.glob("*.json")):
            run = read_record(path, published=True)
            runs[run.key] = run
        for path in sorted(self.root.glob(f"{'[0-9a-f]' * 16}/record.json")):  # not those under way
            run = read_record(path, published=path.parent.name in runs)
            runs[run.key] = run
        return sorted(runs.values(), key=lambda run: (run.name, run.data["fingerprint"], run.seed))

    def publish(self, run: Run) -> Path:
        """Copy a run's record to the published ones and return its path there.

        Raises UserError for a record too large to go with the project.
        """
        content = json.dumps(run.record, ensure_ascii=False).encode()
        if len(content) > LIMIT:
            raise UserError(
                f"运行 {run.name}（种子 {run.seed}）的记录有 {len(content):,} 字节，超过发布的上限 {LIMIT:,}；"
                "请减少轮数或测试图像后重新训练。"
            )
        self.published.mkdir(parents=True, exist_ok=True)
        path = self.published / f"{run.name}-s{run.seed}-{run.key}.json"
        checkpoint.write_atomic(path, content)
        return path

    @contextlib.contextmanager
    def lock(self, key: str, deadline: float | None = None) -> Iterator[None]:
        """Hold a run's exclusive lock; the operating system frees it when the process dies, however it dies.

        At ``deadline`` (a ``time.monotonic()`` moment) the wait for another process ends without it.

        The empty file stays: unlinking it would let a third process lock another file of the same name.
        """
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with open(self.root / "locks" / key, "a+b") as file:
            if not _acquire(file, deadline):
                raise OutOfTime(key)
            yield

    def _publish_local(self, work: Path, record: dict[str, Any], outcome: Outcome, weights: bool) -> Run:
        size = sum(tensor.numel() * tensor.element_size() for tensor in outcome.state.values())
        if (weights or size <= KEEP_WEIGHTS) and not outcome.failed:
            save_weights(work / "weights.safetensors", outcome.state, record)
        checkpoint.write_atomic(work / "record.json", json.dumps(record, ensure_ascii=False).encode())
        final = self.root / record["key"]
        aside = self.root / f".{final.name}.old"
        shutil.rmtree(aside, ignore_errors=True)
        if final.exists():  # a record without the weights now asked for: nothing else ever replaces a run
            os.replace(final, aside)  # whole, as long as somebody may be reading it
        os.replace(work, final)
        shutil.rmtree(aside, ignore_errors=True)
        # only now: a kill before the rename must find it, or hours of training are lost
        (final / "checkpoint.safetensors").unlink(missing_ok=True)
        return read_record(final / "record.json", published=any(self.published.glob(f"*-{final.name}.json")))


def make_record(recipe: Recipe, seed: int, data: Dataset, outcome: Outcome) -> dict[str, Any]:
    """Return the JSON-able record of a finished run."""
    with torch.device("meta"):  # shapes are enough to count
        model = build_model(recipe, data.num_classes, data.image_size)
    cost = count(model, data.image_size)
    labels = predicted = confidence = np.array([], np.uint8)
    accuracy = None
    if outcome.test_logits is not None:
        labels = data.test.labels.numpy().astype(np.uint8)
        predicted, confidence = answers(outcome.test_logits)
        accuracy = float((predicted == labels).mean())
    curves = {name: pack_curve(values) for name, values in outcome.history.items() if name not in ("epoch", "lr")}
    (*others, machine) = outcome.machines  # a run that went on elsewhere has been trained by all of them
    if others:
        machine = {k: " + ".join({str(it[k]): 0 for it in outcome.machines}) for k in machine}
    fitted = sum(len(part) for part in data.split(seed=0)[:1]) if recipe.protocol == "study" else len(data.train)
    return {
        "format": FORMAT, "key": recipe.key(seed, data.fingerprint), "numerics": NUMERICS,
        "name": recipe.name, "seed": seed, "recipe": recipe.spec(),
        "data": {
            "name": data.name, "fingerprint": data.fingerprint, "provenance": data.provenance,
            "class_names": list(data.class_names), "class_counts": list(data.class_counts),
            "train_images": fitted, "test_images": len(data.test), "image_size": data.image_size,
        },
        "accuracy": accuracy, "failed": outcome.failed, "params": cost.params, "flops": cost.flops, "history": curves,
        "labels": pack_bytes(labels), "predicted": pack_bytes(predicted), "confidence": pack_bytes(confidence),
        "timing": {name: round(value, 3) for name, value in outcome.timing.items()},
        "machine": machine,
        "source": source_hash(),
    }  # fmt: skip


def source_hash() -> str:
    """Return 16 hex digits of all of vitlib's Python source: recorded, never part of a key."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _acquire(file: IO[bytes], deadline: float | None) -> bool:
    """Lock the file, waiting until ``deadline`` at the latest; return whether it is locked."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        file.seek(0)
        while True:
            with contextlib.suppress(OSError):  # LK_LOCK gives up after ten tries, one a second
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
    waiting = False
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False
        if not waiting:
            Progress.warn("另一个进程正在做同一个训练，等它做完。")
        waiting = True
        time.sleep(0.2)
