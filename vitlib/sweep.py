"""What a plan lacks: its price, and its training in the order of priority, within a budget of time."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vitlib.data import Dataset
from vitlib.data.long_tail import lt_ratios
from vitlib.device import pick
from vitlib.errors import FailedRun, UserError
from vitlib.evaluate import autocast
from vitlib.models import count
from vitlib.plans import Job, Profile, jobs, profile_named, tailed
from vitlib.progress import Progress
from vitlib.recipe import Recipe
from vitlib.recipes import VIT
from vitlib.record import Run
from vitlib.state import OutOfTime, build_model
from vitlib.store import Store

H100_FLOPS = 100e12  # operations per second that training is assumed to reach on one H100, for price lists
BUDGET = 1200.0  # seconds that ``auto`` may spend on training


@dataclass
class Swept:
    """What a sweep did: runs there now, in the plan's order, and the jobs left: no time, or a failed run before them."""

    runs: list[Run] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)


def resolve(name: str, data: Dataset, **overrides: int | None) -> Profile:
    """Return a profile by name, ``auto`` among them, with fields replaced as ``profile_named`` does."""
    return profile_named(decide(name, data), **overrides)


def decide(name: str, data: Dataset, budget: float = BUDGET) -> str:
    """Return the profile's name that ``auto`` stands for, any other name as it is.

    On a CPU ``quick``; on a GPU the last tier that fits ``budget`` seconds by a short calibration, ``quick``
    where not even the first one fits.
    """
    if name != "auto":
        return name
    device = pick()
    if device.type == "cpu":
        return "quick"
    full = profile_named("full")
    tier = affordable(full, prices(jobs("all", full), len(data.train), calibrate(device)), budget)
    return f"full:{tier}" if tier else "quick"


def missing(todo: Sequence[Job], data: Dataset, store: Store) -> list[Job]:
    """Return the jobs that the store has no finished run of."""
    return [job for job in todo if store.find(job.recipe, job.seed, tailed(data, job.factor)) is None]


def sweep(
    todo: Sequence[Job], data: Dataset, store: Store, *, budget: float | None = None, workers: int = 1,
    show: bool = True,
) -> Swept:  # fmt: skip
    """Train the jobs that are missing, in order; stop cleanly when ``budget`` seconds are spent.

    A run that the budget interrupts keeps its checkpoint and is continued by the next sweep. ``workers``
    processes train side by side: small runs leave most of a GPU idle.
    """
    end = None if budget is None else time.time() + budget
    out = Swept()
    lacking = {id(job) for job in missing(todo, data, store)}
    with Progress(len(todo), "计划", unit="次", show=show) as progress, contextlib.ExitStack() as stack:
        futures: dict[int, Future[bool]] = {}
        if workers > 1:
            # in a file: tensors would travel through shared memory, of which a container may have little, and the
            # bytes through a pipe that a worker empties only after it has imported everything
            parcel = Path(stack.enter_context(TemporaryDirectory())) / "data"
            parcel.write_bytes(pickle.dumps(data))
            given = (parcel, store.root, store.published, end, workers)
            how = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, how, _begin, given))
            futures |= {id(job): pool.submit(_work, job) for job in todo if id(job) in lacking}
            stack.callback(pool.shutdown, cancel_futures=True)  # first of all, also when one job raises
        for job in todo:
            future = futures.get(id(job))
            try:
                if id(job) in lacking and not (future.result() if future else _train(job, data, store, end, show)):
                    out.left.append(job)
                    continue
            except BrokenProcessPool as error:
                raise UserError("一个训练进程意外结束，多半是内存不够；请减少 --workers 后重来。") from error
            run = store.find(job.recipe, job.seed, tailed(data, job.factor))
            assert run is not None
            out.runs.append(run)
            progress.advance()
    return out


def _train(job: Job, data: Dataset, store: Store, end: float | None, show: bool) -> bool:
    """Train one job until ``end`` (a ``time.time()`` moment) at the latest; return whether it is finished."""
    if end is not None and time.time() >= end:
        return False
    deadline = None if end is None else time.monotonic() + end - time.time()
    try:
        store.get(job.recipe, job.seed, tailed(data, job.factor), deadline=deadline, show=show)
    except OutOfTime:
        return False
    except FailedRun as error:
        Progress.warn(f"{job.recipe.name}（种子 {job.seed}）做不了：{error}")
        return False
    return True


_given: tuple[Dataset, Store, float | None]  # what a worker process needs for all its jobs


def _begin(data: Path, root: Path, published: Path, end: float | None, workers: int) -> None:
    global _given
    _given = pickle.loads(data.read_bytes()), Store(root, published), end
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # later than the sweep, which says that it was interrupted, once, and would take this for a crash
    signal.signal(signal.SIGINT, lambda *_: threading.Timer(3.0, os._exit, (130,)).start())


def _end_with_parent() -> None:
    """Stop when the sweep is killed: a pool's worker would otherwise train on unseen, beside whatever comes next."""
    multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)


def _work(job: Job) -> bool:
    return _train(job, *_given, show=False)


def calibrate(device: torch.device, seconds: float = 2.0) -> float:
    """Return the floating-point operations per second that training the modern ViT reaches here."""
    model, batch = build_model(VIT, 10, 32).to(device), 32 if device.type == "cpu" else VIT.batch_size
    images = torch.randn(batch, 3, 32, 32, device=device)
    flops = 3.0 * count(model).flops * batch  # before the clock runs: counting takes longer than the steps
    steps, started = -2, time.monotonic()
    while steps < 2 or (elapsed := time.monotonic() - started) < seconds:
        if steps == 0:  # the first two warm up
            started = time.monotonic()
        with autocast(device):
            loss = model(images).float().square().mean()
        loss.backward()
        float(loss.detach())
        steps += 1
    return flops * steps / elapsed


def costs(todo: Sequence[Job]) -> dict[str, int]:
    """Return the FLOPs of one image's forward pass by recipe name, counted on stand-in weights."""
    out = {}
    waiting = [job.recipe for job in todo]
    while waiting:
        recipe = waiting.pop()
        if recipe.name not in out:
            with torch.device("meta"):
                model = build_model(recipe, 10, 32)
            out[recipe.name] = int(count(model).flops * getattr(model, "passes", 1))
        waiting += recipe.starts().values()
    return out


def prices(todo: Sequence[Job], images: int, flops_per_second: float) -> dict[int, float]:
    """Return the estimated seconds of the jobs by tier, a pre-training or a teacher shared by runs counted once."""
    cost, paid = costs(todo), set()

    def seconds(recipe: Recipe, seed: int, factor: float) -> float:
        """The recipe and what is trained before it, as far as it is not paid for."""
        key = recipe.key(seed, f"{factor}")
        if key in paid:
            return 0.0
        paid.add(key)
        before = recipe.before(seed)
        answers = sum(cost[it.name] for role, it, _ in before if role == "teacher")  # it only looks: a third of a step
        share = sum(lt_ratios(factor, "exp")) / 10 if factor else 1.0  # as if ten classes were equal before the cut
        step = (3.0 * cost[recipe.name] + answers) * images * share / flops_per_second
        return step * recipe.epochs + sum(seconds(start, its_seed, factor) for _, start, its_seed in before)

    out: dict[int, float] = {}
    for job in todo:
        out[job.tier] = out.get(job.tier, 0.0) + seconds(job.recipe, job.seed, job.factor)
    return out


def affordable(profile: Profile, price: dict[int, float], seconds: float) -> int:
    """Return the last tier of ``price`` (seconds by tier) up to which a profile fits into ``seconds``; 0 for none."""
    total, last = 0.0, 0
    for tier in sorted(price):
        total += price[tier]
        if tier > profile.tier or total > seconds:
            break
        last = tier
    return last


def price_list(todo: Sequence[Job], data: Dataset, store: Store) -> dict[str, Any]:
    """Return what a plan would cost: its jobs, and by tier the minutes here (calibrated) and on one H100 (assumed)."""
    lacking = missing(todo, data, store)
    by_rate = [prices(lacking, len(data.train), rate) for rate in (calibrate(pick()), H100_FLOPS)]
    jobs = [
        {"tier": job.tier, "label": job.label, "recipe": job.recipe.name, "seed": job.seed, "epochs": job.recipe.epochs,
         "done": job not in lacking}
        for job in todo
    ]  # fmt: skip
    tiers = [
        {"tier": tier, "missing": sum(job.tier == tier for job in lacking),
         "here_minutes": by_rate[0].get(tier, 0.0) / 60, "h100_minutes": by_rate[1].get(tier, 0.0) / 60}
        for tier in sorted({job.tier for job in todo})
    ]  # fmt: skip
    return {"jobs": jobs, "tiers": tiers}
