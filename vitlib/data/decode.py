"""From image files of any size and mode to one uint8 tensor."""

import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitlib.data.cache import Pack, cached
from vitlib.data.tree import Tree, reason
from vitlib.errors import UserError
from vitlib.progress import Progress

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # a closed list: some of Pillow's other readers run programs
MAX_PIXELS, TOO_LARGE = 2**26, "图像过大：至多"  # 8192 x 8192
File = TypeVar("File")
_CHUNK = 128  # images for one task of the pool
# What Pillow, zipfile, zlib and lzma raise on damaged bytes (TypeError: EXIF of a wrong type); anything else is a
# defect of ours.
_DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, NotImplementedError, TypeError,
    struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, Image.DecompressionBombError,
)  # fmt: skip


def decode_image(data: bytes, size: int) -> np.ndarray:
    """Decode one image file to uint8 (3, size, size), RGB.

    The EXIF orientation is applied, transparency is laid on white, 16-bit grey keeps its high byte.
    Another size is scaled to fit its shorter side (bicubic) and cut in the centre.
    Raises one of ``_DAMAGE`` where the bytes are not such an image.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{TOO_LARGE} {MAX_PIXELS:,} 像素，这张是 {image.width} × {image.height}，请先缩小")
        image.draft(None, (4 * size, 4 * size))  # a JPEG photo is decoded near the size that is needed
        image.load()
        square = to_rgb(ImageOps.exif_transpose(image))
        if square.size != (size, size):
            square = ImageOps.fit(square, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(square).transpose(2, 0, 1)


def read_image(path: str | os.PathLike[str], size: int = 32) -> Tensor:
    """Read one image file as uint8 (3, size, size); raises UserError with the file and the reason."""
    try:
        return torch.from_numpy(decode_image(Path(path).read_bytes(), size).copy())
    except _DAMAGE as error:
        raise UserError(f"无法读取图像 {path}：{_why(error)}。请检查路径，或换一个完好的文件。") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB, whatever its mode."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def decode_files(read: Callable[[File], bytes], files: Sequence[File], size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode ``files`` in a pool of threads.

    Returns uint8 (N, 3, size, size) and, for each file that cannot be read, its index and why.
    """
    images = np.zeros((len(files), 3, size, size), np.uint8)
    faults: dict[int, str] = {}

    def chunk(start: int) -> int:
        stop = min(start + _CHUNK, len(files))
        for i in range(start, stop):
            try:
                images[i] = decode_image(read(files[i]), size)
            except _DAMAGE as error:
                faults[i] = _why(error)
        return stop - start

    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        Progress(len(files), "解码图像", unit="张", show=len(files) > 2000) as bar,
    ):
        for done in pool.map(chunk, range(0, len(files), _CHUNK)):
            bar.advance(done)
    return images, dict(sorted(faults.items()))


def load_part(tree: Tree, part: str | None, ids: Mapping[str, int], size: int, skip: bool) -> Pack:
    """Decode the class folders of a tree, or of its part ``train`` or ``test``, through the cache.

    ``ids`` gives each class folder its label; images are ordered by label, then by name.
    With ``skip``, files that cannot be read are left out and listed. Raises UserError for a class
    that ``ids`` lacks, for a class without a readable image and, without ``skip``, for the first
    unreadable file.
    """

    def make() -> Pack:
        classes = tree.classes(part)
        if unknown := [name for name in classes if name not in ids]:
            known = "、".join(ids)
            raise UserError(
                f"{tree.where} 里有未知的类别“{'”“'.join(unknown)}”，已知的类别是：{known}。"
                f"请改名、删除这些文件夹，或补上训练图像。"
            )
        order = sorted(classes, key=lambda name: ids[name])
        files = [path for name in order for path in classes[name]]
        labels = torch.tensor([ids[name] for name in order for _ in classes[name]])
        pixels, faults = decode_files(tree.read, files, size)
        skipped = tuple(f"{tree.where / files[i]}：{why}" for i, why in faults.items())
        if faults and not skip:
            raise UserError(
                f"无法读取图像 {skipped[0]}（这样的文件共 {len(faults)} 个）。请重新取得或删除它；"
                f"vitlib data --skip-unreadable 列出全部；Python 里可以用 skip_unreadable=True 跳过它们。"
            )
        keep = np.array([i for i in range(len(files)) if i not in faults], dtype=np.int64)
        for name in order:
            if not (labels[keep] == ids[name]).any():
                raise UserError(f"{tree.where} 的类别“{name}”没有一张能读的图像。请换上完好的图像。")
        images = torch.from_numpy(pixels if not faults else pixels[keep])
        return Pack(images, labels[keep], skipped)

    return cached(make, "tree", tree.key, part, dict(ids), size, skip)


def _why(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"不是 {'、'.join(FORMATS)} 图像"
    if isinstance(error, OSError) and error.errno:
        return reason(error)
    if "truncated" in str(error):
        return "文件不完整（被截断）"
    return f"{error}" if TOO_LARGE in str(error) else f"文件已损坏（{error}）"
