"""The published weights, ``best`` and ``light``: the records of their recipes, their files, and what they take to run."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labreport.analysis import assess, latency
from vitlib.augment import to_float
from vitlib.data import Dataset
from vitlib.light import quantize
from vitlib.light.export import CALIBRATION, OnnxModel, to_onnx
from vitlib.paths import weights_dir
from vitlib.recipes import RECIPES
from vitlib.record import Run
from vitlib.weights import load_trained, load_weights

NAMES = ("best", "light")
FORMS = ("PyTorch", "ONNX", "ONNX int8")


def seeds_of(name: str, runs: Iterable[Run]) -> list[Run]:
    """Return the runs of the recipe behind a weights file, on the same data, that run itself first; none if it is not there."""
    path = weights_dir() / f"{name}.safetensors"
    key = load_weights(path)[1]["key"] if path.is_file() else None
    by_key = {run.key: run for run in runs}
    if key not in by_key:
        return []
    own = by_key.pop(key)
    alike = (own.name, own.epochs, own.data["fingerprint"])
    others = [run for run in by_key.values() if (run.name, run.epochs, run.data["fingerprint"]) == alike]
    return [own, *sorted(others, key=lambda run: run.seed)]


def teacher_of(run: Run) -> str:
    """Return the name of the recipe that taught a run, "" if none did; a record names teachers after their pupils."""
    teacher = run.recipe.teacher
    if teacher is None:
        return ""
    return next((name for name, recipe in RECIPES.items() if recipe.spec() == teacher.spec()), teacher.name)


def mirrored(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the mean of a model's logits on images (B, C, S, S) and on their mirror images: test-time augmentation."""
    return lambda images: (model(images) + model(images.flip(-1))) / 2


def measure_mirrored(data: Dataset) -> dict[str, Any]:
    """Return whether ``best``, looking at each test image of ``data`` and at its ``mirrored`` one, is right, bool (N,)."""
    trained = load_trained(NAMES[0])
    return {"mirrored": assess.correct(mirrored(trained.model), data.test, trained.recipe.normalize)}


def told_faster(times: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Tell how many times as fast as ``best`` in each form ``light`` is as int8, by threads as :func:`measure` took them."""
    rows = {
        how: [latency.factor(each[f"best {form}"], each["light ONNX int8"]) for form in FORMS]
        for how, each in times.items()
    }
    (how, first), *others = rows.items()
    said = f"{how}时是 PyTorch 的 {first[0]} 倍、ONNX fp32 的 {first[1]} 倍、ONNX int8 的 {first[2]} 倍"
    return said + "".join(f"；{name}时依次是 {'、'.join(row)} 倍" for name, row in others)


def measure(data: Dataset, folder: Path, *, seconds: float, least: int) -> dict[str, Any]:
    """Export both models to ``folder``, with int8, and measure all forms on the whole ``data`` they were trained for.

    Returns ``bytes`` by model (that of the int8 file), ``weight_bits`` of both, ``correct`` by model and form, bool (N,)
    over the test images, and ``times`` by threads, then by "model form", of one image at a time (see
    :func:`latency.measure`).
    """
    images = data.split(seed=0)[1].sample(CALIBRATION).images
    found: dict[str, Any] = {"bytes": {}, "correct": {}, "times": {}, "weight_bits": quantize.WEIGHT_BITS}
    files, models = {}, {}
    for name in NAMES:
        trained = load_trained(name)
        how = trained.recipe.normalize
        path = to_onnx(trained.model, trained.image_size, folder / f"{name}.onnx")
        quantize.int8(path, small := path.with_suffix(".int8.onnx"), images, how)
        files[name], models[name] = (path, small), trained.model
        found["bytes"][name] = small.stat().st_size
        found["correct"][name] = {
            form: assess.correct(model, data.test, how)
            for form, model in zip(FORMS[::2], (trained.model, OnnxModel(small)), strict=True)
        }
    for threads in (1, 2):
        contest: dict[str, Any] = {}
        for name in NAMES:
            forms = (models[name], *(OnnxModel(path, threads) for path in files[name]))
            contest |= {f"{name} {form}": model for form, model in zip(FORMS, forms, strict=True)}
        with latency.threads(threads), torch.inference_mode():
            one = to_float(data.test.images[:1], how)
            found["times"][f"{threads} 线程"] = latency.measure(contest, one, seconds=seconds, least=least)
    return found
