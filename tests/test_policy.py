"""TrivialAugment and RandAugment against torchvision, image by image."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide, _apply_op

from vitlib.augment import Augment, EpochDraws, augment, to_float
from vitlib.errors import UserError
from vitlib.policy import LEVELS, OPS, RANDOM, TRIVIAL, operate

SPACES = {
    "trivial": (TRIVIAL, TrivialAugmentWide()._augmentation_space(LEVELS)),
    "random": (RANDOM, RandAugment()._augmentation_space(LEVELS, (32, 32))),
}


def pictures(count=6, side=32, seed=0):
    """Return smooth pictures with noise on them, uint8 (count, 3, side, side), the first of them grey all over."""
    source = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(count, 3, 4, 4, generator=source), size=side, mode="bicubic")
    images = (smooth * 200 + 40 * torch.rand(count, 3, side, side, generator=source)).clamp(0, 255).to(torch.uint8)
    images[0] = 90
    return images


def rows(count, **fixed):
    draws = EpochDraws(0, 0, torch.zeros(count, dtype=torch.long), 1).rows(slice(None))
    return draws | {name: torch.full((count,), value) for name, value in fixed.items()}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", OPS)
def test_every_operation_is_torchvisions(name, space):
    ranges, table = SPACES[space]
    images = pictures()
    for level in (0, 1, 7, 16, 23, 30):
        for negative in (False, True):
            magnitudes, signed = table[name]
            magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
            magnitude = -magnitude if signed and negative else magnitude
            expected = _apply_op(images, name, magnitude, InterpolationMode.NEAREST, None).float() / 255
            op, where = torch.full((6,), OPS.index(name)), torch.full((6,), level)
            got = operate(to_float(images, "none"), op, where, torch.full((6,), negative), ranges)
            wrong = (got - expected).abs() > 2.01 / 255  # torchvision rounds down after every step
            assert wrong.float().mean() < (0.01 if name in ("ShearX", "ShearY", "Rotate") else 1e-9), (level, negative)


def test_each_image_gets_its_own_operation():
    images = to_float(pictures(len(OPS)), "none")
    op, level, negative = torch.arange(len(OPS)), torch.full((len(OPS),), 20), torch.arange(len(OPS)) % 2 == 0
    together = operate(images, op, level, negative, TRIVIAL)
    for i in range(len(OPS)):
        alone = operate(images[i : i + 1], op[i : i + 1], level[i : i + 1], negative[i : i + 1], TRIVIAL)
        torch.testing.assert_close(together[i : i + 1], alone)
    assert torch.equal(together[0], images[0])  # the identity


def test_the_switches_draw_every_operation_level_and_sign(monkeypatch):
    import vitlib.policy

    seen = []
    monkeypatch.setattr(vitlib.policy, "operate", lambda pixels, *what: seen.append(what) or pixels)
    images = pictures(700, side=4)
    augment(images, rows(700), Augment(trivial=True), "none")
    augment(images, rows(700), Augment(randaugment=(2, 9)), "none")
    assert len(seen) == 3
    for op, level, negative, ranges in seen:
        assert torch.bincount(op, minlength=14).min() > 25 and 0.4 < negative.float().mean() < 0.6
        assert set(level.tolist()) == (set(range(31)) if ranges is TRIVIAL else {9})
    assert not torch.equal(seen[1][0], seen[2][0])


def test_off_is_off_and_on_changes_no_other_draw():
    images = pictures()
    plain = augment(images, rows(6), Augment(flip=True, crop=2, erase=1.0), "half")
    identity = augment(images, rows(6, op1=0.0), Augment(flip=True, crop=2, erase=1.0, trivial=True), "half")
    torch.testing.assert_close(identity, plain)
    assert Augment(trivial=False, randaugment=None).switches() == {}
    assert Augment(randaugment=(2, 9)).switches() == {"randaugment": [2.0, 9.0]}


@pytest.mark.parametrize(
    "switches",
    [
        {"randaugment": (3, 9)},
        {"randaugment": (1, 31)},
        {"randaugment": (1,)},
        {"trivial": True, "randaugment": (1, 9)},
    ],
)
def test_bad_policies_are_refused(switches):
    with pytest.raises(UserError, match="randaugment="):
        Augment(**switches)
