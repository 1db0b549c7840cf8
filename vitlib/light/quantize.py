"""Fewer bits for a trained model, by ONNX Runtime: int8 computation, dynamic and static, and weights of 4 or 8 bits.

Dynamic: the scale of activations is found anew for every input. Static: it is fixed beforehand on calibration
images. Weight-only: small integers are stored, and unpacked to float32 for the computation.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor

from vitlib.evaluate import predict
from vitlib.light.export import CPU, OnnxModel, batches, quiet, write

TYPES = ["MatMul", "Gemm", "Conv"]  # where the time goes; norms, softmax and GELU stay in float


class _Calibration(CalibrationDataReader):
    def __init__(self, images: Tensor, normalize: str) -> None:
        self.left = iter(batches(images, normalize))

    def get_next(self) -> dict | None:
        return next(self.left, None)


def dynamic(path: Path, out: Path) -> Path:
    """Write an int8 version of an ONNX file, one scale an output channel, activations scaled on the fly."""
    with quiet():
        quantize_dynamic(path, out, op_types_to_quantize=TYPES[:2], per_channel=True, weight_type=QuantType.QInt8)
    return out


def static(
    path: Path, out: Path, images: Tensor, normalize: str, only: Sequence[str] = (), but: Sequence[str] = ()
) -> Path:
    """Write an int8 version whose activation scales come from uint8 ``images`` (N, C, S, S).

    only, but: modules (see :func:`modules`) to quantise alone, or to leave in float; their order does not matter.
    """
    named = modules(path)
    with quiet():
        quantize_static(
            path, out, _Calibration(images, normalize), op_types_to_quantize=TYPES, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_quantize=[node for module in only for node in named[module]],
            nodes_to_exclude=[node for module in but for node in named[module]],
        )  # fmt: skip
    return out


def int8(path: Path, out: Path, images: Tensor, normalize: str, most: int | None = None) -> dict[str, float]:
    """Write the version that is recommended and published: static, its most sensitive module in float.

    The first 32 of the uint8 ``images`` (N, C, S, S) find that module, all of them the scales; they should hold
    every class and must not be the test set's. Returns :func:`sensitivity`'s errors, ``most`` as there.
    """
    errors = sensitivity(path, images[:32], normalize, most)
    static(path, out, images, normalize, but=[max(errors, key=lambda module: errors[module])])
    return errors


def weight_only(path: Path, out: Path, bits: int = 8) -> Path:
    """Write a version whose matrices are stored in ``bits`` (4 or 8), one scale for every 32 weights."""
    with quiet():
        quantizer = MatMulNBitsQuantizer(onnx.load(path), bits=bits, block_size=32, is_symmetric=True)
        quantizer.process()
    return write(quantizer.model.model, out)


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
