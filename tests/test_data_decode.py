"""Images of every mode, size and format become the same square RGB."""

import io

import numpy as np
import pytest
from data_helpers import encoded, own_places, pixels, refused  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitlib.data import read_image
from vitlib.data.decode import decode_image
from vitlib.errors import UserError

RED = Image.new("RGB", (40, 30), (200, 30, 40))


def near(data, colour, tolerance=3):
    got = decode_image(data, 16)
    assert got.shape == (3, 16, 16) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - np.array(colour)[:, None, None]).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_formats(kind):
    near(encoded(RED, kind), (200, 30, 40), tolerance=4)


@pytest.mark.parametrize(
    "image, kind",
    [
        (RED.quantize(8), "PNG"),
        (RED.convert("RGBA"), "PNG"),
        (RED.convert("RGBA"), "WEBP"),
        (RED.quantize(8), "BMP"),
    ],
    ids=["palette", "alpha", "alpha-webp", "palette-bmp"],
)
def test_modes_that_keep_the_colour(image, kind):
    near(encoded(image, kind), (200, 30, 40), tolerance=4)


def test_cmyk():
    ink = Image.merge("CMYK", [Image.new("L", (20, 20), v) for v in (0, 255, 255, 0)])
    near(encoded(ink, "JPEG", quality=95), (255, 0, 0), tolerance=4)


def test_grey_and_black_and_white():
    near(encoded(Image.new("L", (9, 20), 77)), (77, 77, 77))
    near(encoded(Image.new("1", (9, 20), 1)), (255, 255, 255))


def test_sixteen_bit_grey_keeps_its_high_byte():
    deep = Image.fromarray(np.full((20, 20), 0x4DFF, np.uint16))
    assert deep.mode.startswith("I")
    near(encoded(deep), (0x4D, 0x4D, 0x4D), tolerance=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode):
    if mode == "PA":  # a palette with a transparent entry
        image = Image.new("P", (20, 20), 0)
        image.putpalette([10, 20, 30] * 2)
        near(encoded(image, transparency=0), (255, 255, 255))
        return
    clear = Image.new("RGBA", (20, 20), (10, 10, 10, 0)).convert(mode)
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128)).convert(mode)
    near(encoded(clear), (255, 255, 255))
    near(encoded(half), (127, 127, 127), tolerance=1)


def test_exif_orientation_is_applied():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter clockwise to view"
    turned = decode_image(encoded(picture, "JPEG", quality=95, exif=exif), 32)
    assert turned[:, :, 20:].min() > 200 and turned[:, :, :12].max() < 55  # bright on the right


def test_exif_of_a_wrong_type_is_one_clear_sentence(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    blob, number, text = encoded(pixels(0), "JPEG", exif=exif), b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02"
    assert number in blob
    # the resolution is called a text, as by some editors: turning the picture rewrites it
    (tmp_path / "odd.jpg").write_bytes(blob.replace(number, text))
    with pytest.raises(UserError, match=r"无法读取图像 .*odd\.jpg"):
        read_image(tmp_path / "odd.jpg")


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([8, 16, 33]))
def test_any_size_becomes_a_square_cut_from_the_centre(width, height, size):
    # Blue bars on the long sides, outside the central square, must not survive.
    image = np.full((height, width, 3), (90, 160, 20), np.uint8)
    side, shape = min(width, height), decode_image
    margin = (max(width, height) - side) // 2
    got = shape(encoded(image), size)
    assert got.shape == (3, size, size)
    assert (got == np.array([90, 160, 20], np.uint8)[:, None, None]).all()
    if margin >= 8 and width > height:
        image[:, : margin // 2] = image[:, -(margin // 2) :] = (0, 0, 255)
        assert np.abs(shape(encoded(image), size)[2].astype(int) - 20).max() <= 8


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = pixels(3)
    assert (decode_image(encoded(image), 32) == image.transpose(2, 0, 1)).all()
    blob = encoded(image, "JPEG")
    plain = np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))
    assert (decode_image(blob, 32) == plain.transpose(2, 0, 1)).all()


def test_a_large_photo_is_scaled_closely():
    image = pixels(5, (600, 900))
    got = decode_image(encoded(image, "JPEG", quality=95), 32).astype(int)
    exact = Image.fromarray(image[:, 150:750]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(got - np.asarray(exact).transpose(2, 0, 1)).mean() < 2


def test_one_image_by_its_path(tmp_path):
    path = tmp_path / "图.png"
    path.write_bytes(encoded(pixels(1)))
    image = read_image(path, 16)
    assert image.shape == (3, 16, 16) and image.dtype.is_floating_point is False
    refused(lambda: read_image(tmp_path / "none.png"), "none.png", "不存在")
    path.write_bytes(b"no picture")
    refused(lambda: read_image(path), "图.png", "不是")
