"""A trained model as a file for other programs: ONNX and ``torch.export``, checked against PyTorch.

Letters in shapes: B images (any number), C channels, S side of an image, K classes.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from vitlib.augment import to_float
from vitlib.checkpoint import replacing, write_atomic
from vitlib.data import Dataset
from vitlib.errors import UserError
from vitlib.evaluate import predict
from vitlib.models.a_vit import AdaptiveViT
from vitlib.recipe import Recipe
from vitlib.weights import Trained

CPU = torch.device("cpu")
CALIBRATION = 64  # images, from which the scales of int8 come


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence libraries that tell of every node, on the root logger and in warnings about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class OnnxModel(nn.Module):
    """An ONNX file run by ONNX Runtime on the CPU: images (B, C, S, S) -> logits (B, K), float32.

    ``threads`` 0 leaves the number to the runtime.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        # idle threads that spin would hold the cores that whatever runs next, such as PyTorch, needs
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes have no common base but this one
            raise UserError(f"{path} 不是完好的 ONNX 文件（{error}），请重新导出它。") from error

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"images": images.cpu().numpy()})[0])


def trace(model: nn.Module, image_size: int) -> torch.export.ExportedProgram:
    """Return the model, in evaluation mode, as a program for any number of images (B, 3, S, S)."""
    if isinstance(model, AdaptiveViT) and model.halting:
        raise UserError("A-ViT 的词元何时停下由图像决定，不能导出为固定的计算图；请导出别的模型。")
    batch = torch.export.Dim("batch")
    images = torch.zeros(2, 3, image_size, image_size)
    return torch.export.export(model.eval(), (images,), dynamic_shapes=({0: batch},))


def to_onnx(model: nn.Module, image_size: int, path: Path, story: dict[str, Any] | None = None) -> Path:
    """Write the model to an ONNX file with input ``images`` and output ``logits``; ``story`` goes with it."""
    with quiet():
        program = torch.onnx.export(
            trace(model, image_size), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
        )
    assert program is not None
    return write(program.model_proto, path, story)


def write(proto: onnx.ModelProto, path: Path, story: dict[str, Any] | None = None) -> Path:
    """Write an ONNX model at once or not at all, with its story where one is given."""
    onnx.helper.set_model_props(proto, {} if story is None else {"story": json.dumps(story)})
    with replacing(path) as temporary:
        onnx.save(proto, temporary)
    return path


def load_onnx(path: Path) -> Trained:
    """Return a model that :func:`export` wrote; raises UserError for any other file."""
    model = OnnxModel(path)
    try:
        story = json.loads(model.session.get_modelmeta().custom_metadata_map["story"])
        recipe = Recipe.from_spec(story["recipe"], story["name"])
        return Trained(model, recipe, tuple(story["class_names"]), story["image_size"], story)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} 不是 vitlib export 写出的：它没有说明类别与预处理。") from error


def export(trained: Trained, data: Dataset, path: Path, int8: bool = False) -> dict[str, Any]:
    """Write ``path`` (.onnx) and its neighbour .pt2 and compare both with PyTorch on the test images.

    ``int8`` adds an .int8.onnx, calibrated on ``CALIBRATION`` validation images, whose answers may differ.

    Returns per file its ``path``, ``bytes``, the median image's ``difference`` (largest over its logits), and
    the shares (0-1) of images with the ``same_answers`` and with ``close_logits`` (within a thousandth of the
    largest one). Where tokens are chosen, rounding may tip a choice between two nearly equal ones, in a few
    images. Raises UserError when more than one image in 20 is not close, the images are of another size or, for
    ``int8``, of other classes, the model is ONNX already or ``path`` is no .onnx.
    """
    from vitlib.light import quantize

    if isinstance(trained.model, OnnxModel) or path.suffix != ".onnx":
        raise UserError(f"导出要求一份 PyTorch 的权重与一个 .onnx 文件名；请检查模型与 --out（{path}）。")
    if data.image_size != trained.image_size or (int8 and data.class_names != trained.class_names):
        raise UserError(
            f"数据 {data.name} 的图像边长是 {data.image_size}，模型的是 {trained.image_size}，或者两者的类别不同，不能用来"
            "校准 int8；请用 --data 指定模型自己的数据。"
        )
    normalize = trained.recipe.normalize
    to_onnx(trained.model, trained.image_size, path, dict(trained.story))
    program, small = path.with_suffix(".pt2"), path.with_suffix(".int8.onnx")
    torch.export.save(trace(trained.model, trained.image_size), buffer := io.BytesIO())
    write_atomic(program, buffer.getvalue())  # torch itself aborts on a full disk
    written = [(path, OnnxModel(path)), (program, torch.export.load(program).module())]
    if int8:
        quantize.int8(path, small, data.split(seed=0)[1].sample(CALIBRATION).images, normalize)
        written.append((small, OnnxModel(small)))
    expected = _answers(trained.model, data.test.images, normalize)
    rows = []
    for file, model in written:
        logits = _answers(model, data.test.images, normalize)
        gap = (logits - expected).abs().amax(dim=1)
        close = float((gap <= 1e-3 * expected.abs().max()).double().mean())
        if close < 0.95 and file is not small:
            raise UserError(
                f"{file} 有 {1 - close:.1%} 的图像与 PyTorch 的结果不符，超过舍入误差；请换一个 torch 或 onnx 的版本再试。"
            )
        same = float((logits.argmax(1) == expected.argmax(1)).double().mean())
        row = {"path": str(file), "bytes": file.stat().st_size, "difference": float(gap.median())}
        rows.append(row | {"same_answers": same, "close_logits": close})
    return {"images": len(expected), "files": rows}


def _answers(model: nn.Module, images: Tensor, normalize: str) -> Tensor:
    return predict(model, images, device=CPU, normalize=normalize, precision="float32")


def batches(images: Tensor, normalize: str, size: int = 32) -> list[dict[str, np.ndarray]]:
    """Return uint8 images as the inputs of ONNX Runtime, for calibration."""
    return [{"images": to_float(part, normalize).numpy()} for part in images.split(size)]
