"""Ways to quantise a trained model, side by side, by ONNX Runtime: which of them is exported, and the others.

Dynamic: the scale of activations is found anew for every input. Static: it is fixed beforehand on calibration
images. Weight-only: small integers are stored, and unpacked to float32 for the computation.
"""

from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor

from vitlib.light import quantize
from vitlib.light.export import quiet, write

FORMS = ("int8 动态", "int8 静态", "int8 静态，留一处浮点", "权重 int8", "权重 int4")


def fewer_bits(
    path: Path, images: Tensor, normalize: str, most: int | None = None
) -> tuple[dict[str, Path], dict[str, float]]:
    """Write quantised versions of an ONNX file beside it: the files by FORMS, and the sensitivity of each module.

    Calibrated on uint8 ``images`` (N, C, S, S), which must not be the test set's. ``most``: look at the sensitivity
    of so many modules only.
    """
    out = {name: path.with_name(f"{path.stem}-{i}.onnx") for i, name in enumerate(FORMS)}
    dynamic(path, out[FORMS[0]])
    quantize.static(path, out[FORMS[1]], images, normalize)
    errors = quantize.int8(path, out[FORMS[2]], images, normalize, most)
    for name in FORMS[3:]:
        weight_only(path, out[name], int(name[-1]))
    return out, errors


def dynamic(path: Path, out: Path) -> Path:
    """Write an int8 version of an ONNX file, one scale an output channel, activations scaled on the fly.

    Weights as in :func:`vitlib.light.quantize.static`.
    """
    with quiet():
        quantize_dynamic(
            path, out, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
            reduce_range=quantize.WEIGHT_BITS < 8,
        )  # fmt: skip
    return out


def weight_only(path: Path, out: Path, bits: int = 8) -> Path:
    """Write a version whose matrices are stored in ``bits`` (4 or 8), one scale for every 32 weights."""
    with quiet():
        quantizer = MatMulNBitsQuantizer(onnx.load(path), bits=bits, block_size=32, is_symmetric=True)
        quantizer.process()
    return write(quantizer.model.model, out)
