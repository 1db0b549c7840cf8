"""Training what a plan lacks, in the order of its priority, within a budget of time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vitlib.data import Dataset
from vitlib.device import pick
from vitlib.engine import OutOfTime
from vitlib.evaluate import autocast
from vitlib.models import count
from vitlib.plans import Job, Profile, prices, tailed
from vitlib.progress import Progress
from vitlib.recipes import VIT
from vitlib.record import Run
from vitlib.state import build_model
from vitlib.store import Store

H100_FLOPS = 100e12  # operations per second that training is assumed to reach on one H100, for price lists


@dataclass
class Swept:
    """What a sweep did: runs there now, in the plan's order, and the jobs for which time ran out."""

    runs: list[Run] = field(default_factory=list)
    trained: int = 0
    left: list[Job] = field(default_factory=list)


def missing(todo: Sequence[Job], data: Dataset, store: Store) -> list[Job]:
    """Return the jobs that the store has no finished run of."""
    return [job for job in todo if store.find(job.recipe, job.seed, tailed(data, job.factor)) is None]


def sweep(todo: Sequence[Job], data: Dataset, store: Store, *, budget: float | None = None, show: bool = True) -> Swept:
    """Train the jobs that are missing, in order; stop cleanly when ``budget`` seconds are spent.

    A run that the budget interrupts keeps its checkpoint and is continued by the next sweep.
    """
    deadline = None if budget is None else time.monotonic() + budget
    out, device = Swept(), pick()
    with Progress(len(todo), "计划", unit="次", show=show) as progress:
        for position, job in enumerate(todo):
            mine = tailed(data, job.factor)
            known = store.find(job.recipe, job.seed, mine)
            if known is None and deadline is not None and time.monotonic() > deadline:
                out.left.append(job)
                continue
            try:
                run = store.get(job.recipe, job.seed, mine, device=device, deadline=deadline, show=show)
            except OutOfTime:
                out.left.append(todo[position])
                continue
            out.runs.append(run)
            out.trained += known is None
            progress.advance()
    return out


def calibrate(device: torch.device, seconds: float = 2.0) -> float:
    """Return the floating-point operations per second that training the modern ViT reaches here."""
    model = build_model(VIT, 10, 32).to(device)
    batch = 32 if device.type == "cpu" else 512
    images = torch.randn(batch, 3, 32, 32, device=device)
    steps, started = 0, time.monotonic()
    while steps < 3 or time.monotonic() - started < seconds:
        if steps == 1:  # the first step warms up
            started = time.monotonic()
        with autocast(device):
            loss = model(images).float().square().mean()
        loss.backward()
        float(loss.detach())
        steps += 1
    return 3.0 * count(model).flops * batch * (steps - 1) / (time.monotonic() - started)


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
    here = calibrate(pick())
    by_rate = [prices(lacking, len(data.train), rate) for rate in (here, H100_FLOPS)]
    jobs = [
        {
            "tier": job.tier,
            "label": job.label,
            "recipe": job.recipe.name,
            "seed": job.seed,
            "epochs": job.recipe.epochs,
            "done": job not in lacking,
        }
        for job in todo
    ]
    tiers = [
        {
            "tier": tier,
            "missing": sum(job.tier == tier for job in lacking),
            "here_minutes": by_rate[0].get(tier, 0.0) / 60,
            "h100_minutes": by_rate[1].get(tier, 0.0) / 60,
        }
        for tier in sorted({job.tier for job in todo})
    ]
    return {"jobs": jobs, "tiers": tiers}
