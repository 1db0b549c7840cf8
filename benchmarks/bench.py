"""``vitlib bench``: training and inference of five ViTs of one shape, the data path, and a whole short run."""

import sys
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.datapath import images_per_second
from benchmarks.memory import peak_bytes
from benchmarks.peers import PEERS, build
from benchmarks.roofline import Ceilings, ceilings, floor
from benchmarks.short_run import compare
from benchmarks.steps import AS_WRITTEN, MODES, WORK
from benchmarks.timing import interleave, ratio
from vitlib.augment import EpochDraws
from vitlib.data import Dataset
from vitlib.device import can_compile, describe
from vitlib.engine import Trainer
from vitlib.errors import UserError
from vitlib.recipes import VIT

BASELINE = ("timm", "fp32")  # what ratios are taken to
Cell = tuple[str, str]  # a model and a mode
FULL = {"train": (1, 128, 512), "infer": (1, 128, 512)}  # batch sizes
SMALL = {"train": (128,), "infer": (1, 128)}


def run(
    data: Dataset,
    device: torch.device,
    *,
    full: bool,
    seconds: float,
    models: Iterable[str] | None = None,
    source: str = "auto",
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Measure everything and return it, JSON-able; ``keep`` is given what there is after each group of cells.

    full: the whole grid (batches 1, 128 and 512, every model compiled); otherwise what a processor can do in a
    quarter of an hour: training at batch 128, inference at 1 and 128, and only ours and timm's compiled.
    ``seconds`` is the time for each group of cells that take turns. ``data`` feeds the data path, and ``source`` names it
    for the whole runs, each a process of its own. A peer whose library is missing is left out, and told; the baseline
    may not be.
    """
    models, left_out = available(models or PEERS)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # "fp32" shall mean the same for convolutions and for products
    limits = ceilings(device)
    modes = {name: [m for m in MODES if not m.endswith("compile") or can_compile(device)] for name in models}
    if not full:
        modes = {name: found if name in ("ours", "timm") else found[:2] for name, found in modes.items()}
    rows: list[dict[str, Any]] = []
    for kind in WORK:
        for batch in (FULL if full else SMALL)[kind]:
            cells = [(name, mode) for name in models for mode in modes[name]]
            if kind == "train" and "original" in models:
                cells.append(("original", AS_WRITTEN))
            if kind == "infer" and not full:
                cells = [cell for cell in cells if not cell[1].endswith("compile")]
            rows += _group(kind, batch, cells, data, device, limits, seconds)
            keep({"machine": describe(device), "cells": rows, "left_out": left_out})
    runs = (8_192, 5) if device.type == "cuda" else (1_024, 2)
    return {
        "machine": describe(device),
        "ceilings": {"flops": limits.flops, "bandwidth": limits.bandwidth},
        "cells": rows,
        "left_out": left_out,
        "memory": {name: peak_bytes(name, "bf16", 128) for name in models},
        "data_path": images_per_second(data, device, seconds),
        "short_run": {"images": runs[0], "epochs": runs[1], **compare(source, *runs)},
    }


def available(models: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return those of PEERS that can be built here, and those whose library is missing.

    Raises UserError for an unknown name and where BASELINE's library is the missing one.
    """
    found: tuple[list[str], list[str]] = [], []
    for name in models:
        if name not in PEERS:
            raise UserError(f"没有叫 {name} 的实现；可选：{'、'.join(PEERS)}。")
        try:
            with torch.device("meta"):
                build(name)
            found[0].append(name)
        except UserError as error:
            if name == BASELINE[0]:
                raise
            print(f"{name} 不参加比较：{error}", file=sys.stderr)
            found[1].append(name)
    if BASELINE[0] not in found[0]:
        raise UserError(f"比较要以 {BASELINE[0]} 为基准，请把它也列上。")
    return found


def _group(
    kind: str, batch: int, cells: list[Cell], data: Dataset, device: torch.device, limits: Ceilings, seconds: float
) -> list[dict[str, Any]]:
    """Time the cells of one kind of work and one batch size in turn; return a row a cell."""
    torch.compiler.reset()  # the group before must not count against the limit of recompilations
    tasks: dict[Cell, Callable[[], Any]] = {(name, mode): WORK[kind](name, mode, batch, device) for name, mode in cells}
    least = {mode: floor(WORK[kind]("ours", mode, batch, device), limits)[0] for mode in ("fp32", "bf16")}
    with TemporaryDirectory() as folder:
        if kind == "train":
            tasks["engine", "bf16+compile" if device.type == "cuda" else "bf16"] = _engine_step(
                data, batch, device, Path(folder)
            )
        label = f"{'训练' if kind == 'train' else '推理'}，批大小 {batch}"
        named = {f"{name} {mode}": task for (name, mode), task in tasks.items()}
        times = interleave(named, device, seconds=seconds, least=5, label=label)
    base = times[" ".join(BASELINE)]
    rows = []
    for (name, mode), values in zip(tasks, times.values(), strict=True):
        middle, low, high = ratio(base, values)
        rows.append(
            {
                "work": kind, "batch": batch, "model": name, "mode": mode, "seconds": np.round(values, 9).tolist(),
                "images_per_second": batch / float(np.median(values)), "ratio": middle, "ratio_low": low,
                "ratio_high": high,
                "roofline": least["bf16" if mode.startswith("bf16") else "fp32"] / float(np.median(values)),
            }
        )  # fmt: skip
    return rows


def _engine_step(data: Dataset, batch: int, device: torch.device, folder: Path) -> Callable[[], None]:
    """Return a step of the real engine: augmentation, clipping and the checks for non-finite numbers included."""
    trainer = Trainer(VIT.but(protocol="refit", batch_size=batch, augment={"mixup": 0.8}), 0, data, device, folder)
    draws, places = EpochDraws(0, 0, trainer.labels, trainer.steps_per_epoch), cycle(range(trainer.steps_per_epoch))
    trainer.model.train()
    return lambda: trainer._train_step(draws, 0, next(places))  # the next batch each time, or it is ready already


def tell(found: dict[str, Any]) -> None:
    """Print the measurements as tables."""
    rates = found["ceilings"]
    print(f"{found['machine']['name']}，{found['machine']['threads']} 线程，torch {found['machine']['torch']}")
    print("、".join(f"{name} 矩阵乘 {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates["flops"].items()), end="；")
    print(f"内存带宽 {rates['bandwidth'] / 1e9:,.0f} GB/s\n")
    print(f"{'工作':<6}{'批':>5}  {'模型':<14}{'精度':<14}{'图像/秒':>10}  与 timm fp32 之比 [四分位]  屋顶线")
    for row in found["cells"]:
        kind = "训练" if row["work"] == "train" else "推理"
        print(
            f"{kind:<6}{row['batch']:>5}  {row['model']:<16}{row['mode']:<16}{row['images_per_second']:>10,.1f}"
            f"  {row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]  {100 * row['roofline']:.0f} %"
        )
    steps = {
        (row["model"], row["mode"]): row["seconds"]
        for row in found["cells"]
        if (row["work"], row["batch"]) == ("train", 128)
    }
    if ("original", AS_WRITTEN) in steps:
        engine = next(times for (name, _), times in steps.items() if name == "engine")
        middle, low, high = ratio(np.array(steps["original", AS_WRITTEN]), np.array(engine))
        print(f"\n训练：引擎是原系统原样训练的 {middle:.2f} 倍 [{low:.2f}, {high:.2f}]", end="")
    memory = "、".join(f"{name} {size / 2**20:,.0f}" for name, size in found["memory"].items() if size)
    print(f"\n训练一步的内存峰值（MiB，批大小 128，bf16）：{memory or '只在 Linux 或 CUDA 上测量'}")
    path = {name: float(np.median(values)) for name, values in found["data_path"].items()}
    for name, rate in path.items():
        print(f"数据通路 {name}：{rate:,.0f} 图像/秒，为原系统的 {rate / path['original']:.1f} 倍")
    short = found["short_run"]
    print(f"从启动到测试完毕（{short['images']:,} 张，{short['epochs']} 轮）：", end="")
    print("、".join(f"{name} {short[name]['seconds']:.1f} 秒" for name in ("ours", "timm")))
    sys.stdout.flush()
