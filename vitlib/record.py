"""The record of a finished run: one small JSON file that holds all a report needs."""

import base64
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitlib.errors import FailedRun, UserError
from vitlib.recipe import NUMERICS, Recipe
from vitlib.state import build_model
from vitlib.weights import find_weights, load_weights

FORMAT = 1
LIMIT = 32 * 1024  # bytes of one record
_MISSING = np.iinfo(np.int32).min  # stands for a value that is not finite
_SCALE = 1e5  # history values keep five decimals


def pack_bytes(values: np.ndarray) -> str:
    """Return uint8 values as JSON-safe text."""
    return base64.b85encode(zlib.compress(np.asarray(values, np.uint8).tobytes(), 9)).decode()


def unpack_bytes(text: str) -> np.ndarray:
    """Return the uint8 (N,) array that :func:`pack_bytes` packed."""
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)


def pack_curve(values: list[float]) -> str:
    """Return a curve as text: five decimals, differences of neighbours, compressed."""
    array = np.asarray(values, np.float64)
    fine = np.isfinite(array) & (np.abs(array) < 2e4)
    whole = np.where(fine, np.round(np.where(fine, array, 0) * _SCALE), _MISSING).astype(np.int64)
    steps = np.diff(whole, prepend=0)
    return base64.b85encode(zlib.compress(steps.astype("<i8").tobytes(), 9)).decode()


def unpack_curve(text: str) -> np.ndarray:
    """Return the float64 (epochs,) curve that :func:`pack_curve` packed, NaN where it was not finite or 20,000 or more."""
    whole = np.cumsum(np.frombuffer(zlib.decompress(base64.b85decode(text)), "<i8"))
    return np.where(whole == _MISSING, np.nan, whole / _SCALE)


def answers(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted classes and their confidence in 1/255, both uint8 (N,), from logits (N, K).

    A row that is not finite predicts class 0, as ``argmax`` of a NaN row does, with confidence 0.
    """
    confidence, predicted = logits.float().softmax(1).max(1)
    finite = torch.isfinite(confidence)
    predicted = torch.where(finite, predicted, torch.zeros_like(predicted))
    confidence = torch.where(finite, confidence, torch.zeros_like(confidence))
    return predicted.numpy().astype(np.uint8), (confidence * 255).round().numpy().astype(np.uint8)


class Run:
    """A finished run, read from its record.

    Attributes
        key, name, seed, epochs, params, flops (of one image's forward pass), recipe
        history: columns ``epoch``, ``train_loss``, ``train_accuracy`` and ``val_*`` or the monitored
            ``test_*``, float64 (epochs,), accuracies in 0-1
        accuracy: test accuracy in 0-1, NaN where there is none (autoencoder)
        labels, predicted: uint8 (N,) of the test images; confidence: float32 (N,) in 0-1; correct: bool (N,)
        failed: None, or where the run met a non-finite number
        data: name, fingerprint, provenance, class_names, class_counts, train_images, test_images, image_size
        device: its name, such as ``NVIDIA H100`` or the processor's; machine, timing, numerics, published
    """

    def __init__(self, record: Mapping[str, Any], path: Path, published: bool) -> None:
        self.record, self.path, self.published = record, path, published
        self.key, self.name, self.seed = record["key"], record["name"], record["seed"]
        self.recipe = Recipe.from_spec(record["recipe"], record["name"])
        self.epochs, self.numerics = self.recipe.epochs, record["numerics"]
        self.params, self.flops, self.failed = record["params"], record["flops"], record["failed"]
        self.data, self.timing, self.machine = record["data"], record["timing"], record["machine"]
        self.device = str(self.machine["name"])
        self.history = {name: unpack_curve(text) for name, text in record["history"].items()}
        self.history = {"epoch": np.arange(1, 1 + len(next(iter(self.history.values()), ())))} | self.history
        self.accuracy = float("nan") if record["accuracy"] is None else float(record["accuracy"])
        self.labels, self.predicted = (unpack_bytes(record[name]) for name in ("labels", "predicted"))
        self.confidence = unpack_bytes(record["confidence"]).astype(np.float32) / 255
        self.correct = self.labels == self.predicted

    @property
    def train_seconds(self) -> float:
        """Wall time of training in seconds, evaluation of the curve included."""
        return float(self.timing["train_seconds"])

    @property
    def monitored_accuracy(self) -> float:
        """The original's own measure: mean of the monitored test accuracy over the last 10 % of epochs (0-1)."""
        curve = self.history.get("test_accuracy", np.array([]))
        return float(curve[-max(1, len(curve) // 10) :].mean()) if len(curve) else float("nan")

    @property
    def summary(self) -> dict[str, Any]:
        """The line that ``vitlib runs --json`` prints."""
        accuracy = None if np.isnan(self.accuracy) else self.accuracy
        return {
            "recipe": self.name, "seed": self.seed, "data": self.data["name"], "accuracy": accuracy,
            "params": self.params, "flops": self.flops, "epochs": self.epochs, "device": self.device,
            "published": self.published, "key": self.key, "failed": self.failed["message"] if self.failed else None,
            "train_images": self.data["train_images"], "test_images": self.data["test_images"],
            "seconds": self.train_seconds,
        }  # fmt: skip

    def weights_path(self) -> Path | None:
        """Return the run's weights in the local store, or None when only the record is at hand."""
        path = self.path.parent / "weights.safetensors"
        return path if path.exists() else None

    def load_state(self) -> dict[str, Tensor]:
        """Return the final state dict; raises UserError where only the record was kept, FailedRun where it failed."""
        if self.failed:
            raise FailedRun(f"运行 {self.name}（种子 {self.seed}）没有训练成功，没有权重：{self.failed['message']}")
        path = self.weights_path() or find_weights(self.key)
        if path is None:
            raise UserError(
                f"运行 {self.name}（种子 {self.seed}）只留下了记录，没有权重；"
                "请用 Store().get(配方, 种子, 数据, weights=True) 取得它：没有权重就会在本机重新训练。"
            )
        return load_weights(path)[0]

    @property
    def has_weights(self) -> bool:
        """Whether :meth:`load_model` will find weights, in the local store or among the published ones."""
        return bool(self.weights_path() or find_weights(self.key))

    def load_model(self) -> nn.Module:
        """Return the trained model in evaluation mode, on the CPU."""
        model = build_model(self.recipe, len(self.data["class_names"]), self.data["image_size"])
        model.load_state_dict(self.load_state())
        return model.eval()


def read_record(path: Path, published: bool) -> Run:
    """Read one record; raises UserError when it is damaged or does not match its key or its own answers."""
    try:
        record = json.loads(path.read_text("utf-8"))
        run = Run(record, path, published)
        expected = run.recipe.key(run.seed, run.data["fingerprint"], run.numerics)
        genuine = record["format"] == FORMAT and expected == run.key
        # the accuracy that everybody quotes is the one that the kept answers have
        genuine &= run.record["accuracy"] == (float(run.correct.mean()) if len(run.labels) else None)
        if not re.fullmatch(r"[\w.-]+", run.name) or type(run.seed) is not int:  # they become a file's name
            raise ValueError(f"名字 {run.name!r} 或种子 {run.seed!r} 不合规定：名字只能有文字、数字、“_”、“.”与“-”")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, zlib.error, UserError) as error:
        raise UserError(f"运行记录 {path} 读不出来（{type(error).__name__}：{error}），请删去它或重新取得。") from error
    if not genuine:
        raise UserError(f"运行记录 {path} 的内容与它的键或答案不符，可能被改动过；请删去它或重新取得。")
    return run


def is_stale(run: Run) -> bool:
    """Whether the run was made under an older numerics version than this code's."""
    return bool(run.numerics < NUMERICS)
