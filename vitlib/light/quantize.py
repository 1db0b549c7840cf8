"""int8 for a trained model, by ONNX Runtime: static, that is with scales fixed beforehand on calibration images."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch import Tensor

from vitlib.checkpoint import replacing
from vitlib.evaluate import predict
from vitlib.light.export import CPU, OnnxModel, batches, quiet

TYPES = ["MatMul", "Gemm", "Conv"]  # where the time goes; norms, softmax and GELU stay in float
# Of an int8 weight: 7 of the 8 bits, a reduced range in ONNX Runtime's words. A processor without VNNI adds two
# products in 16 bits, which 8 bits saturate, and the published models lost 4 and 5 points there (benchmarks/NOTES.md).
# Measurements that say nothing of it had 8.
WEIGHT_BITS = 7


class _Calibration(CalibrationDataReader):
    def __init__(self, images: Tensor, normalize: str) -> None:
        self.left = iter(batches(images, normalize))

    def get_next(self) -> dict | None:
        return next(self.left, None)


def static(
    path: Path, out: Path, images: Tensor, normalize: str, only: Sequence[str] = (), but: Sequence[str] = ()
) -> Path:
    """Write an int8 version whose activation scales come from uint8 ``images`` (N, C, S, S).

    only, but: modules (see :func:`modules`) to quantise alone, or to leave in float; their order does not matter.
    Weights take WEIGHT_BITS bits, activations 8.
    """
    named = modules(path)
    with quiet(), replacing(out) as raw:
        quantize_static(
            path, raw, _Calibration(images, normalize), op_types_to_quantize=TYPES, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=WEIGHT_BITS < 8,
            nodes_to_quantize=[node for module in only for node in named[module]],
            nodes_to_exclude=[node for module in but for node in named[module]],
        )  # fmt: skip
        small = onnx.load(raw)
        for node in small.graph.node:  # where in the model each came from: a tenth of a small file
            del node.metadata_props[:]
        onnx.save(small, raw)
    return out


def int8(path: Path, out: Path, images: Tensor, normalize: str, most: int | None = None) -> dict[str, float]:
    """Write the version that is recommended and published: static, its most sensitive small module in float.

    Small is a module of at most a tenth of the weights: float there is cheap. The first 32 of the uint8 ``images``
    (N, C, S, S) find it, all of them the scales; they should hold every class and must not be the test set's.
    Returns :func:`sensitivity`'s errors, ``most`` as there.
    """
    errors = sensitivity(path, images[:32], normalize, most)
    static(path, out, images, normalize, but=left_in_float(path, errors))
    return errors


def left_in_float(path: Path, errors: dict[str, float]) -> list[str]:
    """Return the module that :func:`int8` leaves in float, given :func:`sensitivity`'s errors; [] if none is small."""
    graph, parts = onnx.load(path).graph, modules(path)
    sizes = {weight.name: math.prod(weight.dims) for weight in graph.initializer}
    held = {node.name: sum(sizes.get(name, 0) for name in node.input) for node in graph.node}
    small = [module for module in errors if sum(held[node] for node in parts[module]) <= sum(sizes.values()) / 10]
    return sorted(small, key=lambda module: errors[module])[-1:]


def modules(path: Path) -> dict[str, list[str]]:
    """Return the nodes that can be quantised by the part of the model they belong to: stem, blocks.0, ..., head."""
    found: dict[str, list[str]] = {}
    for node in onnx.load(path).graph.node:
        scopes = {item.key: item.value for item in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        inside = [name.strip(" []'\"") for name in scopes.split(",")]
        if node.op_type in TYPES:
            found.setdefault(inside[1] if len(inside) > 1 else node.name, []).append(node.name)
    return found


def sensitivity(path: Path, images: Tensor, normalize: str, most: int | None = None) -> dict[str, float]:
    """Return, for each module quantised alone, the relative error of the logits: |q - f|^2 / |f - mean f|^2.

    Scales and errors come from the same uint8 images (N, C, S, S), which must not be the test set's.
    ``most``: look at so many modules only, the first ones.
    """
    exact = predict(OnnxModel(path), images, device=CPU, normalize=normalize, precision="float32")
    errors = {}
    with tempfile.TemporaryDirectory() as folder:
        for module in [*modules(path)][:most]:
            out = static(path, Path(folder) / "one.onnx", images, normalize, only=[module])
            logits = predict(OnnxModel(out), images, device=CPU, normalize=normalize, precision="float32")
            errors[module] = float(torch.sum((logits - exact) ** 2) / torch.sum((exact - exact.mean(0)) ** 2))
    return errors
