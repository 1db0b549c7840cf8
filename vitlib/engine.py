"""The training engine: one recipe, one seed, one data set, from the first step to the last.

What exact resumption needs, all of it:
1. the data order and every augmentation draw are functions of (seed, epoch);
2. dropout and other noise are functions of (seed, step): the global generator is seeded each step;
3. the learning rate is a function of the step;
4. the shape of a batch is a function of the epoch;
5. whatever else a step depends on is in :class:`vitlib.state.TrainState`, and so in the checkpoint, which
   replaces its predecessor by a rename.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlib.augment import EpochDraws, mix
from vitlib.data import Dataset, LabeledImages, ValSet
from vitlib.device import can_compile, compiled
from vitlib.evaluate import autocast, predict
from vitlib.guard import first_nonfinite
from vitlib.losses import build_loss
from vitlib.models.transfer import take_over
from vitlib.objectives import OBJECTIVES
from vitlib.posthoc import PostHoc
from vitlib.progress import Progress
from vitlib.recipe import Recipe
from vitlib.rng import derive
from vitlib.schedule import learning_rate
from vitlib.state import FINE, Outcome, OutOfTime, TrainState, build_model

COMPILE_FROM, COMPILE_SECONDS = 8000, 90  # steps from which compiling on a GPU pays for itself, and what it may take
AUGMENT_TOGETHER = 8192  # images on a GPU: few large kernels instead of many small ones


class Trainer:
    """Trains one run in ``folder``, resuming from the checkpoint that lies there.

    ``start`` is the state dict that starts this run (``recipe.init_from``), ``teacher`` the trained model whose
    answers it imitates (``recipe.teacher``), in evaluation mode. ``deadline`` is a ``time.monotonic()`` moment
    at which :meth:`run` raises :class:`OutOfTime` after a checkpoint. On a GPU a run of ``compile_from`` steps is
    compiled, if there is time for it.
    """

    def __init__(
        self, recipe: Recipe, seed: int, data: Dataset, device: torch.device, folder: Path,
        start: Mapping[str, Tensor] | None = None, teacher: nn.Module | None = None, deadline: float | None = None,
        show: bool = True, compile_from: int = COMPILE_FROM,
    ) -> None:  # fmt: skip
        self.recipe, self.seed, self.data, self.device = recipe, seed, data, device
        self.folder, self.deadline, self.show = folder, deadline, show
        self.choose_images()
        torch.manual_seed(derive(seed, "init"))
        self.model = build_model(recipe, data.num_classes, data.image_size).to(device)
        if start is not None:
            take_over(self.model, start, recipe.transfer)
        if recipe.posthoc:
            PostHoc(**recipe.posthoc).apply(self.model, self.class_counts)
        self.state = TrainState(recipe, self.model, device)
        self.loss = build_loss(recipe.loss, self.class_counts, **recipe.loss_args).to(device)
        self.objective = OBJECTIVES[recipe.objective](recipe, self.model, self.loss, teacher and teacher.to(device))
        self.forward: Callable[..., Any] = self.model
        time_for_it = deadline is None or deadline - time.monotonic() > COMPILE_SECONDS
        if device.type == "cuda" and self.steps >= compile_from and time_for_it and can_compile(device):
            self.forward = compiled(self.model)
        self.check_every = 1 if device.type == "cpu" else 50  # asking a GPU means waiting for it
        self.together = 1 if device.type == "cpu" else max(1, AUGMENT_TOGETHER // self.batch)  # batches
        self.ready: tuple[EpochDraws, int, list[Any]] | None = None
        self.state.resume(folder)

    def choose_images(self) -> None:
        """Pick the images to fit and those to watch; only the original's protocol may watch the test set."""
        recipe, fit = self.recipe, self.data.train
        self.watch: tuple[str, LabeledImages] | None = None
        if recipe.protocol == "study":
            fit, validation = self.data.split(seed=0)
            if not isinstance(validation, ValSet):
                raise TypeError("a study may watch a validation split only")
            self.watch = ("val", validation) if recipe.objective == "classify" else None
        elif recipe.protocol == "original" and recipe.objective == "classify":
            self.watch = ("test", self.data.test)
        self.images, self.labels = fit.images.to(self.device), fit.labels.to(self.device)
        self.class_counts = fit.counts(self.data.num_classes)
        self.batch = min(recipe.batch_size, len(fit))
        self.steps_per_epoch = len(fit) // self.batch
        self.steps = self.steps_per_epoch * recipe.epochs

    def warm_up(self) -> None:
        """Compile, where the model is compiled, on made-up pixels; the run itself stays as it was."""
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.train()
        draws = EpochDraws(self.seed, 0, self.labels, self.steps_per_epoch, self.recipe.sampling)
        black = torch.zeros_like(self.images[: self.batch])
        views = self.objective.views(black, draws, slice(self.batch))
        shown = views[0] if len(views) == 1 else tuple(views)
        self._forward_loss(self.forward, shown, self.labels[: self.batch], 0)[0].backward()
        self.state.optimizer.zero_grad()
        self.model.load_state_dict(before)

    def run(self) -> Outcome:
        """Train from where the checkpoint stands to the end and return the outcome.

        Raises OutOfTime at the deadline. A non-finite step does not raise: the outcome says ``failed``.
        """
        state, failed, draws = self.state, None, None
        interval = float(os.environ.get("CIFAR_VIT_CHECKPOINT_SECONDS", "60"))
        if self.forward is not self.model:
            self.warm_up()  # compiling is not training time
        saved = time.monotonic()
        state.start_clock()
        label = f"训练 {self.recipe.name}（种子 {self.seed}）"
        with Progress(self.steps, label, done=state.step, show=self.show) as progress:
            while state.step < self.steps:
                epoch, i = divmod(state.step, self.steps_per_epoch)
                if draws is None or i == 0:
                    draws = EpochDraws(self.seed, epoch, self.labels, self.steps_per_epoch, self.recipe.sampling)
                    self.model.train()
                self._train_step(draws, epoch, i)
                state.step += 1
                epoch_ends = i + 1 == self.steps_per_epoch
                if epoch_ends or state.step % self.check_every == 0:
                    failed = self._locate_failure(draws)
                if failed:
                    break  # and no checkpoint: the last one, from before, would find the bad step again
                if epoch_ends:
                    self._end_epoch(epoch)
                progress.advance(1, **self._shown())
                now = time.monotonic()
                out_of_time = self.deadline is not None and now > self.deadline and state.step < self.steps
                if now - saved > interval or out_of_time:
                    state.save(self.folder)
                    saved = time.monotonic()
                    interval = interval and max(interval, 20 * (saved - now))  # a twentieth of the time
                if out_of_time:
                    raise OutOfTime(self.recipe.name)
        state.stop_clock()
        return self._finish(failed)

    def _train_step(self, draws: EpochDraws, epoch: int, i: int) -> None:
        state, optimizer = self.state, self.state.optimizer
        self.loss.weigh = epoch >= min(self.recipe.defer * self.recipe.epochs, self.recipe.epochs - 1)
        rate = learning_rate(state.step, self.steps, self.steps_per_epoch, self.recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        pixels, targets = self._batch(draws, epoch, i)
        loss, logits = self._forward_loss(self.forward, pixels, targets, state.step)
        optimizer.zero_grad()
        loss.backward()
        finite, stops = torch.isfinite(loss.detach()), self.recipe.on_nonfinite == "stop"
        if self.recipe.clip_norm:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
            finite = finite & torch.isfinite(norm)
        elif stops:
            norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            finite = finite & torch.isfinite(norm)
        if stops:
            # from the first bad step on the optimiser skips its updates, on the device and without a host
            # sync, so the weights stay as they were when the number broke and the step can be repeated
            state.bad_step = torch.where(finite, state.bad_step, state.bad_step.clamp(max=state.step))
            optimizer.found_inf = (state.bad_step < FINE).float()  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()
        state.update_ema()
        self.objective.after_step(state.step, self.steps)
        with torch.no_grad():
            state.loss_sum += loss.detach()
            if logits is not None:
                hard = targets.argmax(1) if targets.ndim == 2 else targets
                state.hits += (logits.argmax(1) == hard).sum()

    def _batch(self, draws: EpochDraws, epoch: int, i: int) -> tuple[Any, Tensor]:
        """Return what the objective shows the model, float32, and targets: int64 (B,) or, mixed, float32 (B, K)."""
        pixels, switches = self._pixels(draws, i), self.objective.switches.at(epoch, self.recipe.epochs)
        targets = self.labels[draws.order[i * self.batch : (i + 1) * self.batch]]
        if self.recipe.objective != "classify":
            return pixels, targets
        if switches.mixup or switches.cutmix:
            pixels, targets = mix(pixels, targets, self.data.num_classes, switches, draws.mix(i))
        if switches.shrink:
            pixels = F.interpolate(pixels, size=switches.shrink, mode="bilinear", antialias=True)
        return pixels, targets

    def _pixels(self, draws: EpochDraws, i: int) -> Any:
        """Return the augmented pixels, or the views, of batch ``i`` of the epoch, made ready together with its neighbours."""
        first = i - i % self.together
        if self.ready is None or self.ready[0] is not draws or self.ready[1] != first:
            last = min(first + self.together, self.steps_per_epoch)
            places = slice(first * self.batch, last * self.batch)
            views = self.objective.views(self.images.index_select(0, draws.order[places]), draws, places)
            batches = [*zip(*(view.split(self.batch) for view in views), strict=True)]
            self.ready = draws, first, [batch[0] if len(batch) == 1 else batch for batch in batches]
        return self.ready[2][i - first]

    def _forward_loss(
        self, forward: Callable[[Any], Any], pixels: Any, targets: Tensor, step: int
    ) -> tuple[Tensor, Tensor | None]:
        torch.manual_seed(derive(self.seed, "step", step))

        def in_half(images: Any) -> Any:  # and the loss in float32
            with autocast(self.device):
                return forward(images)

        return self.objective(in_half, pixels, targets)

    def _locate_failure(self, draws: EpochDraws) -> dict[str, Any] | None:
        step = int(self.state.bad_step)
        if step == FINE:
            return None
        epoch, i = divmod(step, self.steps_per_epoch)
        pixels, targets = self._batch(draws, epoch, i)

        def repeat() -> Tensor:  # not by the compiled model, which would not see the guard's hooks
            return self._forward_loss(self.model, pixels, targets, step)[0]

        module, what = first_nonfinite(self.model, repeat)
        message = f"第 {step + 1} 步（第 {epoch + 1} 轮第 {i + 1} 批）出现非有限值，模块 {module}：{what}。"
        images = draws.order[i * self.batch : (i + 1) * self.batch][:4].tolist()  # to find it again
        return {"step": step, "epoch": epoch, "batch": i, "images": images, "module": module, "message": message}

    def _end_epoch(self, epoch: int) -> None:
        state = self.state
        row: dict[str, float] = {
            "epoch": epoch + 1,
            "lr": learning_rate(state.step - 1, self.steps, self.steps_per_epoch, self.recipe),
            "train_loss": float(state.loss_sum) / self.steps_per_epoch,
        }
        if self.recipe.objective == "classify":
            row["train_accuracy"] = float(state.hits) / (self.steps_per_epoch * self.batch)
        if self.watch is not None:
            name, images = self.watch
            logits = self._predict(images, "watch", epoch)
            row[f"{name}_loss"] = float(F.cross_entropy(logits, images.labels))
            row[f"{name}_accuracy"] = float((logits.argmax(1) == images.labels).double().mean())
        for column, value in row.items():
            state.history.setdefault(column, []).append(value)
        state.zero_sums()
        try:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
        except OSError as error:  # for whoever watches; the record is made from the history
            Progress.warn(f"训练日志没有写下（{error}），训练继续；请腾出磁盘空间。")

    def _predict(self, images: LabeledImages, *purpose: str | int) -> Tensor:
        """Return logits (N, K) by the final weights; the original is noisy here too, so this is seeded."""
        torch.manual_seed(derive(self.seed, "predict", *purpose))
        live = {k: v.clone() for k, v in self.model.state_dict().items()} if self.state.ema else None
        if live is not None:
            self.model.load_state_dict(self.state.final())
        self.model.eval()
        logits = predict(self.model, images.images, device=self.device, normalize=self.recipe.normalize)
        if live is not None:
            self.model.load_state_dict(live)
        return logits

    def _shown(self) -> dict[str, str]:
        for column, label in (("val_accuracy", "验证"), ("test_accuracy", "测试")):
            if values := self.state.history.get(column):
                return {label: f"{100 * values[-1]:.1f} %"}
        losses = self.state.history.get("train_loss")
        return {"损失": f"{losses[-1]:.4f}"} if losses else {}

    def _finish(self, failed: dict[str, Any] | None) -> Outcome:
        started, state = time.monotonic(), self.state
        logits = None
        if self.recipe.objective == "classify":
            logits = self._predict(self.data.test, "test")
        timing = {
            "train_seconds": state.seconds,
            "test_seconds": time.monotonic() - started,
            "images_per_second": state.step * self.batch / state.seconds if state.step else 0.0,
        }
        if self.device.type == "cuda":
            timing["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(self.device))
        final = {k: v.cpu() for k, v in state.final().items()}
        return Outcome(state.history, final, logits, failed, timing, state.machines)
