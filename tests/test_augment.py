"""Augmentation: what each switch may change, what it must keep, and torchvision as the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as reference

from vitlib import resize
from vitlib.augment import (
    COLUMNS,
    Augment,
    EpochDraws,
    augment,
    erase,
    jitter,
    mix,
    shift_and_flip,
    to_float,
)
from vitlib.errors import UserError
from vitlib.recipes import RECIPES
from vitlib.resize import resized_crop

EVERYTHING = {
    "flip": True, "crop": 2, "resized_crop": (0.5, 1.0, 0.8, 1.25), "jitter": 0.4, "erase": 0.5,
}  # fmt: skip
SWITCHES = st.fixed_dictionaries({}, optional={name: st.just(value) for name, value in EVERYTHING.items()})


def pictures(count, side=12, seed=0):
    """Return uint8 noise (count, 3, side, side)."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=source, dtype=torch.uint8)


def rows(count, seed=0, epoch=0, **fixed):
    """Return the draws of ``count`` images, the named columns replaced by fixed numbers."""
    draws = EpochDraws(seed, epoch, torch.zeros(count, dtype=torch.long), 1).rows(slice(None))
    return draws | {name: torch.full((count,), value) for name, value in fixed.items()}


@given(SWITCHES, st.sampled_from(["half", "none"]), st.sampled_from([8, 12, 32]), st.integers(0, 99))
@settings(max_examples=30)
def test_shape_dtype_and_range_are_kept(switches, normalize, side, seed):
    images = pictures(5, side, seed)
    before = images.clone()
    out = augment(images, rows(5, seed), Augment(**switches), normalize)
    assert out.shape == images.shape and out.dtype == torch.float32
    assert out.min() >= (-1 if normalize == "half" else 0) - 1e-6 and out.max() <= 1 + 1e-6
    assert torch.equal(images, before)  # the data set itself must not change


@pytest.mark.parametrize(("normalize", "low"), [("half", -1.0), ("none", 0.0)])
def test_without_switches_only_the_scale_changes(normalize, low):
    images = pictures(4)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0, 255
    out = augment(images, rows(4), Augment(), normalize)
    torch.testing.assert_close(out, low + (1 - low) * images / 255)
    torch.testing.assert_close(out, to_float(images, normalize))
    assert (out[0, 0, 0, 0], out[0, 0, 0, 1]) == (low, 1.0)


def test_flip_only_mirrors_and_does_so_to_half():
    images = pictures(400, side=4)
    out = augment(images, rows(400), Augment(flip=True), "none")
    plain = to_float(images, "none")
    mirrored = (out == plain.flip(3)).flatten(1).all(1)
    kept = (out == plain).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 160 < mirrored.sum() < 240


@given(st.integers(1, 5), st.floats(0, 0.999), st.floats(0, 0.999))
@settings(max_examples=40)
def test_crop_only_shifts_and_fills_with_zeros(pad, down, right):
    images = pictures(2, side=8)
    out = shift_and_flip(images, rows(2, shift_y=down, shift_x=right), pad, flip=False)
    dy, dx = (int(draw * (2 * pad + 1)) - pad for draw in (down, right))
    for y in range(8):
        for x in range(8):
            inside = 0 <= y + dy < 8 and 0 <= x + dx < 8
            expected = images[:, :, y + dy, x + dx] if inside else torch.zeros(2, 3, dtype=torch.uint8)
            assert torch.equal(out[:, :, y, x], expected)


def test_crop_reaches_every_offset_alike():
    images = torch.zeros(3000, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 1
    out = shift_and_flip(images, rows(3000), 1, flip=False)
    hits = out[:, 0].sum(0)
    assert hits[1:4, 1:4].sum() == 3000 and hits.sum() == 3000
    assert hits[1:4, 1:4].min() > 250 and hits[1:4, 1:4].max() < 420


BOXES = [(10, 7, 3, 4), (5, 12, 0, 4), (16, 16, 0, 0), (15, 15, 1, 1), (1, 1, 8, 3), (8, 16, 8, 0)]


@pytest.mark.parametrize(("height", "width", "top", "left"), BOXES)
@pytest.mark.parametrize("mirror", [False, True])
def test_resized_crop_is_torchvisions(height, width, top, left, mirror, monkeypatch):
    side = 16
    images = pictures(3, side)
    area, aspect = height * width / side**2, width / height
    draws = rows(
        3,
        box_y=(top + 0.5) / (side - height + 1),
        box_x=(left + 0.5) / (side - width + 1),
        flip=0.0 if mirror else 1.0,
    )
    limits = (area, area, aspect, aspect)
    expected = reference.resized_crop(images.float(), top, left, height, width, [side, side], antialias=True)
    if mirror:
        expected = expected.flip(3)
    for dtype, within in ((None, 5e-3), (torch.bfloat16, 0.5 + 5e-3)):  # grey levels
        monkeypatch.setattr("vitlib.resize.autocast_dtype", lambda device, dtype=dtype: dtype)
        out = resized_crop(images, draws, limits, flip=True)
        torch.testing.assert_close(out, expected, atol=within, rtol=0)


@pytest.mark.parametrize("side", [12, 32, 40])  # bfloat16 for powers of two; a table of all boxes up to 32
def test_resized_crop_of_the_whole_picture_changes_nothing(side):
    images = pictures(4, side)
    out = resized_crop(images, rows(4), (1.0, 1.0, 1.0, 1.0), flip=False)
    torch.testing.assert_close(out, images.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("pixels", [8, 16, 32])
def test_bfloat16_holds_the_weights_of_every_box_exactly(pixels):
    for out in (8, 16, 32, 64):
        weights = resize._interpolation_table(pixels, out, torch.float32, torch.device("cpu"))
        assert torch.equal(weights, weights.bfloat16().float())
        valid = weights.unflatten(1, (out, pixels)).unflatten(0, (pixels, pixels, 2))
        for size in (1, pixels // 2, pixels):
            torch.testing.assert_close(valid[size - 1, 0].sum(-1), torch.ones(2, out))


def test_a_table_of_boxes_gives_what_each_box_would(monkeypatch):
    images, draws = pictures(50, 16), rows(50)
    looked_up = resized_crop(images, draws, (0.1, 1.0, 0.5, 2.0), flip=True)
    monkeypatch.setattr(
        resize, "_weights", lambda *args: resize._interpolation(*args[:-1]).to(args[-1])
    )  # as for images larger than 32
    assert torch.equal(looked_up, resized_crop(images, draws, (0.1, 1.0, 0.5, 2.0), flip=True))


def test_resized_crops_boxes_have_the_areas_and_aspects_asked_for(in_float32):
    side, count = 32, 500
    ramp = (255 * torch.linspace(0, 1, side)).expand(count, 1, side, side)
    limits = (0.3, 0.8, 0.5, 2.0)
    wide = resized_crop(ramp, rows(count), limits, flip=False)
    high = resized_crop(ramp.transpose(2, 3), rows(count), limits, flip=False)
    # a ramp shows its box: from the first to the last column's value, box - 1 pixels
    widths = (wide[:, 0, 0, -1] - wide[:, 0, 0, 0]) / 255 * (side - 1) + 1
    heights = (high[:, 0, -1, 0] - high[:, 0, 0, 0]) / 255 * (side - 1) + 1
    torch.testing.assert_close(widths, widths.round(), atol=1e-2, rtol=0)
    areas, aspects = widths * heights / side**2, widths / heights
    assert 0.28 < areas.min() < 0.34 and 0.72 < areas.max() < 0.83
    assert 0.47 < aspects.min() < 0.6 and 1.7 < aspects.max() < 2.1
    assert abs(areas.mean() - 0.55) < 0.03 and abs(aspects.log().mean()) < 0.08


@pytest.mark.parametrize("brightness", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("contrast", [0.6, 1.3])
@pytest.mark.parametrize("saturation", [0.7, 1.4])
def test_jitter_is_torchvisions(brightness, contrast, saturation):
    images = to_float(pictures(3), "none")
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    draws = rows(3, **{name: (factor - 1) / 0.5 / 2 + 0.5 for name, factor in factors.items()})
    expected = images
    for name, factor in factors.items():
        expected = getattr(reference, f"adjust_{name}")(expected, factor)
    torch.testing.assert_close(jitter(images, draws, 0.5), expected, atol=2e-4, rtol=0)


def test_jitter_of_strength_0_changes_nothing():
    images = to_float(pictures(3), "none")
    torch.testing.assert_close(jitter(images, rows(3), 0.0), images)


def test_erase_replaces_one_box_by_grey_in_the_share_asked_for():
    count, side = 800, 24
    images = to_float(pictures(count, side), "none")
    out = erase(images, rows(count), 0.4)
    changed = (out != images).any(1)
    assert (out[changed[:, None].expand_as(out)] == 0.5).all()
    hit = changed.flatten(1).any(1)
    assert 0.34 < hit.float().mean() < 0.46
    areas = []
    for mask in changed[hit]:
        height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert mask.sum() == height * width  # a solid rectangle (noise is never exactly 0.5)
        areas.append(height * width / side**2)
        assert 0.2 < height / width < 5
    assert 0.01 < min(areas) < 0.04 and 0.29 < max(areas) < 0.37
    assert torch.equal(erase(images, rows(count), 0.0), images)


def shares(switches, step):
    """Mix 6 one-colour images of classes 0-5; return own pixel shares, own target shares and the mixed batch."""
    count, side = 6, 16
    images = torch.arange(count).float()[:, None, None, None].expand(count, 3, side, side).clone()
    rng = EpochDraws(3, 0, torch.zeros(count, dtype=torch.long), 40).mix(step)
    mixed, targets = mix(images, torch.arange(count), count, Augment(**switches), rng)
    assert targets.dtype == torch.float32 and mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    own, other = targets.diagonal(), targets.flip(1).diagonal()
    torch.testing.assert_close(own + other, torch.ones(count))  # nothing but the image and its partner
    return images, mixed, own


@pytest.mark.parametrize("step", range(12))
def test_cutmix_targets_are_the_shares_of_pixels(step):
    images, mixed, own = shares({"cutmix": 1.0}, step)
    kept = (mixed == images).float().mean((1, 2, 3))
    torch.testing.assert_close(kept, own)
    assert ((mixed == images) | (mixed == images.flip(0))).all()


@pytest.mark.parametrize("step", range(6))
def test_mixup_mixes_pixels_as_it_mixes_targets(step):
    images, mixed, own = shares({"mixup": 0.8}, step)
    weight = own[:, None, None, None]
    torch.testing.assert_close(mixed, weight * images + (1 - weight) * images.flip(0))


def test_mixing_takes_mixup_or_cutmix_by_the_flip_of_a_coin():
    kinds = []
    for step in range(40):
        images, mixed, own = shares({"mixup": 1.0, "cutmix": 1.0}, step)
        assert torch.allclose(own, own[0].expand(6))  # one share a batch
        kinds.append(bool(((mixed == images) | (mixed == images.flip(0))).all()))
    assert 10 < sum(kinds) < 30


def test_mixing_shares_follow_their_beta_distribution():
    own = [float(shares({"mixup": 0.2}, step)[2][0]) for step in range(40)]
    assert np.mean([min(share, 1 - share) < 0.05 for share in own]) > 0.4  # Beta(0.2, 0.2) is U-shaped
    assert 0.3 < np.mean(own) < 0.7


@given(SWITCHES, st.sampled_from([*EVERYTHING]))
@settings(max_examples=40)
def test_each_switch_draws_the_same_whatever_else_is_on(others, name):
    """Two epochs' worth of draws differ in one switch's columns only: the other switches see no change."""
    mine = {
        "flip": ["flip"],
        "crop": ["shift_y", "shift_x"],
        "resized_crop": ["area", "aspect", "box_y", "box_x"],
        "jitter": ["brightness", "contrast", "saturation"],
        "erase": [column for column in COLUMNS if column.startswith("erase")],
    }[name]
    others = {key: value for key, value in others.items() if key != name}
    draws, images = rows(4), pictures(4)
    changed = draws | {column: draws[column].flip(0) for column in mine}
    assert torch.equal(
        augment(images, draws, Augment(**others), "half"), augment(images, changed, Augment(**others), "half")
    )


def test_switching_erase_on_leaves_the_rest_of_every_picture_as_it_was():
    base = {name: value for name, value in EVERYTHING.items() if name != "erase"}
    images = pictures(20)
    plain = augment(images, rows(20), Augment(**base), "none")
    erased = augment(images, rows(20), Augment(**base, erase=1.0), "none")
    same = (plain == erased).all(1)
    grey = (erased == 0.5).all(1)
    assert (same | grey).all() and grey.any() and same.any()


def test_an_image_is_augmented_alike_in_any_batch():
    images, switches = pictures(6), Augment(**EVERYTHING)
    draws = EpochDraws(5, 2, torch.zeros(6, dtype=torch.long), 1)
    whole = augment(images, draws.rows(torch.arange(6)), switches, "half")
    for where in (torch.tensor([4, 1]), torch.tensor([3])):
        part = augment(images[where], draws.rows(where), switches, "half")
        torch.testing.assert_close(part, whole[where], atol=1e-6, rtol=0)


def test_copies_of_one_image_are_augmented_differently():
    images = pictures(1).expand(8, -1, -1, -1).contiguous()
    out = augment(images, rows(8), Augment(**EVERYTHING), "half")
    assert len({tuple(image.flatten().tolist()) for image in out}) == 8


def fingerprint(seed, epoch):
    draws = EpochDraws(seed, epoch, torch.zeros(10, dtype=torch.long), 3)
    mixing = tuple(draws.mix(step).random_sample() for step in range(3))
    return tuple(draws.order.tolist()), tuple(draws.table.flatten().tolist()), mixing


def test_draws_are_a_function_of_seed_and_epoch():
    torch.manual_seed(1)
    first = fingerprint(0, 0)
    torch.manual_seed(2)
    assert fingerprint(0, 0) == first
    others = [fingerprint(0, 1), fingerprint(1, 0)]
    for part in range(3):
        assert len({prints[part] for prints in [first, *others]}) == 3
    assert sorted(first[0]) == list(range(10))
    assert len(set(first[2])) == 3  # each step mixes in its own way


@pytest.mark.parametrize("sampling, exponent", [("balanced", 0.0), ("sqrt", 0.5)])
def test_sampling_shows_the_classes_as_often_as_it_says(sampling, exponent):
    counts = torch.tensor([6000, 3000, 600])
    labels = torch.repeat_interleave(torch.arange(3), counts)
    shown = torch.bincount(labels[EpochDraws(0, 0, labels, 1, sampling).order]) / len(labels)
    torch.testing.assert_close(shown, counts**exponent / (counts**exponent).sum(), atol=0.02, rtol=0)


def test_an_image_drawn_twice_is_augmented_differently():
    draws = EpochDraws(0, 0, torch.zeros(50, dtype=torch.long), 1, "balanced")
    twice = next(i for i in range(50) if (draws.order == i).sum() > 1)
    first, second = draws.table[draws.order == twice][:2]
    assert not torch.equal(first, second)


def test_draws_are_the_same_on_every_machine():
    """Pinned: torch's CPU generator and numpy's RandomState promise their streams."""
    draws = EpochDraws(0, 0, torch.zeros(6, dtype=torch.long), 2)
    assert draws.order.tolist() == [3, 0, 5, 4, 2, 1]
    torch.testing.assert_close(draws.table[1, :3], torch.tensor([0.15039283, 0.77411693, 0.52263778]))
    assert draws.mix(1).randint(1000, size=3).tolist() == [442, 355, 126]


@pytest.mark.parametrize(
    "switch", [{"crop": 2.7}, {"flip": "False"}, {"erase": "x"}, {"resized_crop": "ab"}, {"crop": -1}]
)
def test_a_switch_of_a_wrong_type_is_refused_and_not_rounded(switch):
    with pytest.raises((UserError, TypeError, ValueError)):
        Augment(**switch)
    (name,) = switch
    with pytest.raises(UserError, match=rf"{name}|类型不对"):
        RECIPES["vit"].but(augment=switch)
