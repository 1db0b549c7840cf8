"""The training engine: one recipe, one seed, one data set, from the first step to the last.

What exact resumption needs, all of it:
1. the data order and every augmentation draw are functions of (seed, epoch);
2. dropout and other noise are functions of (seed, step): the global generator is seeded each step;
3. the learning rate is a function of the step;
4. every batch has one shape;
5. weights, their moving average, buffers, the optimiser's state, the sums of the epoch under way and the
   history are in the checkpoint, which replaces its predecessor by a rename.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlib import checkpoint
from vitlib.augment import Augment, EpochDraws, augment, mix
from vitlib.data import Dataset, LabeledImages, TrainSet, ValSet
from vitlib.device import can_compile
from vitlib.errors import UserError
from vitlib.evaluate import autocast, predict
from vitlib.guard import first_nonfinite
from vitlib.losses import build_loss
from vitlib.models import create_model
from vitlib.progress import Progress
from vitlib.recipe import Recipe
from vitlib.rng import derive
from vitlib.schedule import learning_rate

FINE = 2**62  # "no bad step yet"
COMPILE_FROM = 2_000_000  # training images on a GPU from which compiling pays for itself


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


class Trainer:
    """Trains one run in ``folder``, resuming from the checkpoint that lies there.

    ``encoder`` is the state dict whose encoder starts this run (``recipe.init_from``). ``deadline`` is a
    ``time.monotonic()`` moment before which :meth:`run` raises :class:`OutOfTime` after a checkpoint.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        data: Dataset,
        device: torch.device,
        folder: Path,
        encoder: Mapping[str, Tensor] | None = None,
        deadline: float | None = None,
        show: bool = True,
    ) -> None:
        self.recipe, self.seed, self.data, self.device = recipe, seed, data, device
        self.folder, self.deadline, self.show = folder, deadline, show
        self.switches = Augment(**recipe.augment)
        self._choose_images()
        self._build(encoder)
        self.history: dict[str, list[float]] = {}
        self.step = 0
        self.seconds = 0.0  # of training, over all processes that worked on this run
        self._zero_sums()
        self._resume()

    # -- set-up ---------------------------------------------------------------------------------

    def _choose_images(self) -> None:
        """Pick the images to fit and the ones to watch; only the original's protocol may watch the test set."""
        fit: TrainSet = self.data.train
        watch: LabeledImages | None = None
        if self.recipe.protocol == "study":
            fit, validation = self.data.split(seed=0)
            watch = validation
            if not isinstance(validation, ValSet):
                raise TypeError("a study may watch a validation split only")
        elif self.recipe.protocol == "original" and self.recipe.objective == "classify":
            watch = self.data.test
        self.images, self.labels = fit.images.to(self.device), fit.labels.to(self.device)
        self.watch = (watch, "test" if self.recipe.protocol == "original" else "val") if watch is not None else None
        self.batch = min(self.recipe.batch_size, len(self.images))
        self.steps_per_epoch = len(self.images) // self.batch
        self.steps = self.steps_per_epoch * self.recipe.epochs
        self.class_counts = torch.bincount(fit.labels, minlength=self.data.num_classes).tolist()

    def _build(self, encoder: Mapping[str, Tensor] | None) -> None:
        recipe = self.recipe
        torch.manual_seed(derive(self.seed, "init"))
        self.model = build_model(recipe, self.data).to(self.device)
        if encoder is not None:
            self.model.load_encoder(encoder)
        in_head = {id(p) for p in self.model.parameters()} - {id(p) for p in self.model.encoder_parameters()}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            scale = 1.0 if id(parameter) in in_head else recipe.encoder_lr_scale
            # AdamW leaves biases, norms and positions undecayed; torch's Adam, as the original used it, does not
            plain = recipe.optimizer == "adamw" and (parameter.ndim < 2 or "pos" in name or "token" in name)
            groups.setdefault((scale, 0.0 if plain else recipe.weight_decay), []).append(parameter)
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimizer]
        self.optimizer = kind(
            [{"params": ps, "weight_decay": wd, "lr_scale": scale} for (scale, wd), ps in groups.items()],
            lr=recipe.lr,
            fused=True,
        )
        self.ema = {k: v.detach().clone() for k, v in self.model.state_dict().items()} if recipe.ema else None
        self.loss = build_loss(recipe.loss, self.class_counts, **recipe.loss_args).to(self.device)
        pays = self.device.type == "cuda" and self.steps * self.batch >= COMPILE_FROM
        self.forward = torch.compile(self.model) if pays and can_compile(self.device) else self.model
        self.bad_step = torch.tensor(FINE, device=self.device)
        self.check_every = 1 if self.device.type == "cpu" else 50  # asking a GPU means waiting for it

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train from where the checkpoint stands to the end and return the outcome.

        Raises OutOfTime at the deadline. A non-finite step does not raise: the outcome says ``failed``.
        """
        started = self._mark = time.monotonic()
        interval = float(os.environ.get("CIFAR_VIT_CHECKPOINT_SECONDS", "60"))
        saved, failed, draws = started, None, None
        label = f"训练 {self.recipe.name}（种子 {self.seed}）"
        with Progress(self.steps, label, done=self.step, show=self.show) as progress:
            while self.step < self.steps and not failed:
                epoch, i = divmod(self.step, self.steps_per_epoch)
                if draws is None or i == 0:
                    draws = EpochDraws(self.seed, epoch, len(self.images), self.steps_per_epoch, self.device)
                    self.model.train()
                self._train_step(draws, epoch, i)
                self.step += 1
                if self.step % self.check_every == 0 or self.step == self.steps or i + 1 == self.steps_per_epoch:
                    failed = self._locate_failure(draws, epoch)
                if i + 1 == self.steps_per_epoch and not failed:
                    self._end_epoch(epoch)
                progress.advance(**self._shown())
                now = time.monotonic()
                out_of_time = self.deadline is not None and now > self.deadline and self.step < self.steps
                if now - saved > interval or out_of_time:
                    self._save()
                    saved = time.monotonic()
                if out_of_time:
                    raise OutOfTime(self.recipe.name)
        self.seconds += time.monotonic() - self._mark
        return self._finish(failed)

    def _train_step(self, draws: EpochDraws, epoch: int, i: int) -> None:
        rate = learning_rate(self.step, self.steps, self.steps_per_epoch, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        pixels, targets = self._batch(draws, epoch, i)
        loss, logits = self._forward_loss(pixels, targets)
        self.optimizer.zero_grad()
        loss.backward()
        finite = torch.isfinite(loss.detach())
        if self.recipe.clip_norm:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
            finite = finite & torch.isfinite(norm)
        if self.recipe.on_nonfinite == "stop":
            # from the first bad step on the optimiser skips its updates, on the device and without a host
            # sync, so the weights stay as they were when the number broke and the step can be repeated
            self.bad_step = torch.where(finite, self.bad_step, self.bad_step.clamp(max=self.step))
            self.optimizer.found_inf = (self.bad_step < FINE).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.ema is not None:
            self._update_ema()
        with torch.no_grad():
            self.loss_sum += loss.detach().double()
            if logits is not None:
                hard = targets.argmax(1) if targets.ndim == 2 else targets
                self.hits += (logits.argmax(1) == hard).sum()

    def _batch(self, draws: EpochDraws, epoch: int, i: int) -> tuple[Tensor, Tensor]:
        """Return augmented pixels, float32 (B, C, H, W), and targets: int64 (B,) or, mixed, float32 (B, K)."""
        where = draws.order[i * self.batch : (i + 1) * self.batch]
        pixels = augment(self.images[where], draws.rows(where), self.switches, self.recipe.normalize)
        targets = self.labels[where]
        mixing = (self.switches.mixup or self.switches.cutmix) and self.recipe.objective == "classify"
        if mixing and epoch < self.switches.mix_until * self.recipe.epochs:
            pixels, targets = mix(pixels, targets, self.data.num_classes, self.switches, draws.mix(i))
        return pixels, targets

    def _forward_loss(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        torch.manual_seed(derive(self.seed, "step", self.step))
        with autocast(self.device):
            out = self.forward(pixels)
        if self.recipe.objective == "autoencode":
            return F.mse_loss(out.float(), pixels), None
        return self.loss(out, targets), out.detach()

    def _update_ema(self) -> None:
        assert self.ema is not None
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        moving = [(self.ema[k], v) for k, v in state.items() if v.is_floating_point()]
        averages, values = ([pair[j] for pair in moving] for j in (0, 1))
        torch._foreach_lerp_(averages, values, 1 - decay)

    # -- watching -------------------------------------------------------------------------------

    def _locate_failure(self, draws: EpochDraws, epoch: int) -> dict[str, Any] | None:
        step = int(self.bad_step)
        if step == FINE:
            return None
        self.step, i = step, step % self.steps_per_epoch
        pixels, targets = self._batch(draws, epoch, i)
        module, what = first_nonfinite(self.model, lambda: self._forward_loss(pixels, targets)[0])
        where = draws.order[i * self.batch : (i + 1) * self.batch]
        message = (
            f"第 {step + 1} 步（第 {epoch + 1} 轮第 {i + 1} 批，首图编号 {int(where[0])}）出现非有限值：{module}：{what}。"
        )
        return {"step": step, "epoch": epoch, "batch": i, "module": module, "message": message}

    def _end_epoch(self, epoch: int) -> None:
        seen = self.steps_per_epoch * self.batch
        row = {
            "epoch": epoch + 1,
            "lr": learning_rate(self.step - 1, self.steps, self.steps_per_epoch, self.recipe),
            "train_loss": float(self.loss_sum) / self.steps_per_epoch,
        }
        if self.recipe.objective == "classify":
            row["train_accuracy"] = float(self.hits) / seen
        if self.watch is not None:
            images, name = self.watch
            logits = self._predict(images, "watch", epoch)
            row[f"{name}_loss"] = float(F.cross_entropy(logits, images.labels))
            row[f"{name}_accuracy"] = float((logits.argmax(1) == images.labels).double().mean())
        for column, value in row.items():
            self.history.setdefault(column, []).append(value)
        self._zero_sums()
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")

    def _predict(self, images: LabeledImages, *purpose: str | int) -> Tensor:
        torch.manual_seed(derive(self.seed, "predict", *purpose))  # the original is noisy in evaluation, too
        live = {k: v.clone() for k, v in self.model.state_dict().items()} if self.ema is not None else None
        if self.ema is not None:
            self.model.load_state_dict(self.ema)
        self.model.eval()
        logits = predict(self.model, images.images, device=self.device, normalize=self.recipe.normalize)
        if live is not None:
            self.model.load_state_dict(live)
        return logits

    def _zero_sums(self) -> None:
        self.loss_sum = torch.zeros((), dtype=_wide(self.device), device=self.device)
        self.hits = torch.zeros((), dtype=torch.int64, device=self.device)

    def _shown(self) -> dict[str, str]:
        for name, label in (("val_accuracy", "验证"), ("test_accuracy", "测试"), ("train_loss", "损失")):
            if self.history.get(name):
                value = self.history[name][-1]
                return {label: f"{value:.4f}" if name == "train_loss" else f"{value:.1%}"}
        return {}

    # -- keeping --------------------------------------------------------------------------------

    def _save(self) -> None:
        now = time.monotonic()
        self.seconds, self._mark = self.seconds + now - self._mark, now
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in (self.ema or {}).items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        tensors |= {"loss_sum": self.loss_sum, "hits": self.hits, "bad_step": self.bad_step}
        story = {"step": self.step, "seconds": self.seconds, "history": self.history, "threads": torch.get_num_threads()}
        try:
            checkpoint.save(self.folder / "checkpoint.safetensors", tensors, story)
        except OSError as error:  # the run itself is sound: go on with the older checkpoint
            Progress.warn(f"检查点没有存下（{error}），训练继续；请腾出磁盘空间。")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return
        tensors, story = checkpoint.load(path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            if rest:
                parts[group][rest] = tensor
        self.model.load_state_dict(parts["model"])
        if self.ema is not None:
            self.ema = {k: v.to(self.device) for k, v in parts["ema"].items()}
        saved: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition(".")
            saved.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": saved})
        self.step, self.seconds, self.history = story["step"], story["seconds"], story["history"]
        for name in ("loss_sum", "hits", "bad_step"):
            setattr(self, name, tensors[name].to(self.device))
        rows = [dict(zip(self.history, row, strict=True)) for row in zip(*self.history.values(), strict=True)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        checkpoint.write_atomic(self.folder / "log.jsonl", text.encode())

    def _finish(self, failed: dict[str, Any] | None) -> Outcome:
        started = time.monotonic()
        logits = None
        if self.recipe.objective == "classify":
            logits = self._predict(self.data.test, "test")
        state = self.ema if self.ema is not None else self.model.state_dict()
        timing = {
            "train_seconds": self.seconds,
            "test_seconds": time.monotonic() - started,
            "images_per_second": self.step * self.batch / self.seconds if self.seconds else 0.0,
        }
        if self.device.type == "cuda":
            timing["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return Outcome(self.history, {k: v.cpu() for k, v in state.items()}, logits, failed, timing)


def build_model(recipe: Recipe, data: Any) -> nn.Module:
    """Return the recipe's untrained model for ``data`` (its ``num_classes`` and ``image_size``)."""
    args = {"num_classes": data.num_classes, "img_size": data.image_size} | dict(recipe.model_args)
    if recipe.objective == "autoencode":
        args["classifier"] = False
    return create_model(recipe.model, **args)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no double



