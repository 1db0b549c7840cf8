"""Everything a run under way consists of, and how it survives a kill."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlib import checkpoint
from vitlib.device import describe
from vitlib.errors import UserError
from vitlib.models import create_model
from vitlib.muon import Muon
from vitlib.progress import Progress
from vitlib.recipe import Recipe

FINE = 2**62  # "no bad step yet"


class OutOfTime(Exception):
    """The deadline came before the last step; the checkpoint holds everything done so far."""


@dataclass
class Outcome:
    """What a run leaves: history columns, the final state dict, test logits (N, K) and what went wrong."""

    history: dict[str, list[float]]
    state: dict[str, Tensor]
    test_logits: Tensor | None
    failed: dict[str, Any] | None
    timing: dict[str, float] = field(default_factory=dict)
    machines: list[dict[str, str | int]] = field(default_factory=list)


class TrainState:
    """Model, optimiser, moving average, sums of the epoch under way, history, step: what a checkpoint holds.

    Attributes
        model, optimizer; ema: state dict of the averaged weights, or None
        step: the next step, 0-based; seconds: training time so far, over all processes
        history: one list a column, one entry a finished epoch
        machines: what has trained it so far, each as :func:`vitlib.device.describe` tells, this one last
        loss_sum, hits: sums over the steps of the epoch under way; bad_step: first non-finite step, or FINE
    """

    def __init__(self, recipe: Recipe, model: nn.Module, device: torch.device) -> None:
        self.device, self.model, self.decay = device, model, recipe.ema
        self.optimizer = make_optimizer(recipe, model)
        self.ema = {k: v.detach().clone() for k, v in model.state_dict().items()} if recipe.ema else None
        self._moving: tuple[list[Tensor], list[Tensor]] | None = None
        self.history: dict[str, list[float]] = {}
        self.machines = [describe(device)]
        self.step, self.seconds, self._mark = 0, 0.0, time.monotonic()
        self.bad_step = torch.tensor(FINE, device=device)
        self.zero_sums()

    def zero_sums(self) -> None:
        """Begin an epoch's sums."""
        wide = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no double
        self.loss_sum = torch.zeros((), dtype=wide, device=self.device)
        self.hits = torch.zeros((), dtype=torch.int64, device=self.device)

    def update_ema(self) -> None:
        """Move the averaged weights towards the present ones; the decay warms up as (1 + t) / (10 + t)."""
        if self.ema is None:
            return
        if self._moving is None:  # looked up once: walking through the model takes longer than the arithmetic
            pairs = [(self.ema[k], v) for k, v in self.model.state_dict().items() if v.is_floating_point()]
            self._moving = [average for average, _ in pairs], [value for _, value in pairs]
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(*self._moving, 1 - decay)

    def final(self) -> Mapping[str, Tensor]:
        """Return the weights that are evaluated and kept: the average, where there is one."""
        return self.ema if self.ema is not None else self.model.state_dict()

    def start_clock(self) -> None:
        """Begin to count training time, and a GPU's peak of memory: this run's, not of those before it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._mark = time.monotonic()

    def stop_clock(self) -> None:
        """Add the time since the clock was last started or read."""
        now = time.monotonic()
        self.seconds, self._mark = self.seconds + now - self._mark, now

    def save(self, folder: Path) -> None:
        """Replace the checkpoint in ``folder``; a full disk costs a line on standard error, not the run."""
        self.stop_clock()
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in (self.ema or {}).items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        tensors |= {"loss_sum": self.loss_sum, "hits": self.hits, "bad_step": self.bad_step}
        story = {"step": self.step, "seconds": self.seconds, "history": self.history, "machines": self.machines}
        try:
            checkpoint.save(folder / "checkpoint.safetensors", tensors, story)
        except OSError as error:  # the run itself is sound: go on with the older checkpoint
            Progress.warn(f"检查点没有存下（{error}），训练继续；请腾出磁盘空间。")

    def resume(self, folder: Path) -> None:
        """Continue from the checkpoint in ``folder`` if there is one, and cut the log back to it."""
        path = folder / "checkpoint.safetensors"
        for torn in folder.glob(".*"):  # what a kill in the middle of a write left, by us or by safetensors
            torn.unlink()
        if not path.exists():
            (folder / "log.jsonl").unlink(missing_ok=True)
            return
        try:
            self._restore(*checkpoint.load(path))
        except (UserError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"检查点 {path} 已损坏，或不是这个配方的；请删去它，训练会从头开始。") from error
        rows = [dict(zip(self.history, row, strict=True)) for row in zip(*self.history.values(), strict=True)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        checkpoint.write_atomic(folder / "log.jsonl", text.encode())

    def _restore(self, tensors: Mapping[str, Tensor], story: Mapping[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            if rest:
                parts[group][rest] = tensor
        self.model.load_state_dict(parts["model"])
        if self.ema is not None:
            self.ema, self._moving = {k: v.to(self.device) for k, v in parts["ema"].items()}, None
        saved: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition(".")
            saved.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": saved})
        self.step, self.seconds, self.history = story["step"], story["seconds"], story["history"]
        self.machines = [*(it for it in story.get("machines", ()) if it not in self.machines), *self.machines]
        for name in ("loss_sum", "hits", "bad_step"):
            setattr(self, name, tensors[name].to(self.device))


def build_model(recipe: Recipe, num_classes: int, image_size: int) -> nn.Module:
    """Return the recipe's model, untrained, for images (B, 3, image_size, image_size)."""
    args = {"num_classes": num_classes, "img_size": image_size} | dict(recipe.model_args)
    if recipe.objective == "autoencode":
        args["classifier"] = False
    return create_model(recipe.model, **args)


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimiser; each group's ``lr_scale`` multiplies the scheduled rate.

    AdamW and Muon leave biases, norms, positions and prefix tokens undecayed; Adam decays all, as the original did.
    Muon's matrices are the encoder's weights.
    """
    encoder = {id(parameter) for parameter in model.encoder_parameters()}  # type: ignore[operator]
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = recipe.encoder_lr_scale if id(parameter) in encoder else 1.0
        special = parameter.ndim < 2 or name.startswith(("positions.", "prefix"))
        decay = 0.0 if recipe.optimizer != "adam" and special else recipe.weight_decay
        matrix = recipe.optimizer == "muon" and id(parameter) in encoder and not special
        groups.setdefault((scale, decay, matrix), []).append(parameter)
    listed = [{"params": ps, "weight_decay": d, "lr_scale": s, "matrix": m} for (s, d, m), ps in groups.items()]
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "muon": Muon}[recipe.optimizer]
    return kind(listed, lr=recipe.lr, fused=True)
