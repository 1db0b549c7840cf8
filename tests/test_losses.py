"""Losses against hand-written references, known equivalences and general properties."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitlib.errors import UserError
from vitlib.losses import LOSSES, MININGS, WEIGHTINGS, build_loss, class_weights

COUNTS = (50, 30, 20, 10, 5)
K = len(COUNTS)


def batch(seed=0, size=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, K, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(K, (size,), generator=generator)


def cross_entropies(logits, target):
    """-log softmax by plain NumPy in float64, written apart from the code under test."""
    z = logits.double().numpy()
    z = z - z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), target.numpy()]


def test_plain_cross_entropy_is_torchs_with_smoothing_and_soft_targets():
    logits, target = batch()
    soft = torch.softmax(batch(seed=1)[0], dim=1)
    for smoothing in (0.0, 0.1):
        loss = build_loss("cross_entropy", COUNTS, label_smoothing=smoothing)
        for goal in (target, soft):
            expected = F.cross_entropy(logits, goal, label_smoothing=smoothing)
            torch.testing.assert_close(loss(logits, goal), expected)


def test_original_weights_sum_to_one_and_the_mean_is_over_the_batch():
    logits, target = batch()
    weights = np.array([1 / n for n in COUNTS])
    weights /= weights.sum()
    expected = (weights[target.numpy()] * cross_entropies(logits, target)).mean()
    loss = build_loss("cross_entropy", COUNTS, weighting="original")
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-6)
    assert loss.weights.sum().item() == pytest.approx(1)


def test_original_weighting_on_balanced_classes_is_cross_entropy_over_k():
    logits, target = batch()
    ratio = build_loss("cross_entropy", [7] * K)(logits, target) / build_loss(
        "cross_entropy", [7] * K, weighting="original"
    )(logits, target)
    assert ratio.item() == pytest.approx(K)


def test_balanced_weighting_is_the_weighted_mean_of_torch():
    logits, target = batch()
    loss = build_loss("cross_entropy", COUNTS, weighting="balanced")
    expected = F.cross_entropy(logits, target, weight=1 / torch.tensor(COUNTS, dtype=torch.float64))
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-6, atol=0)
    # The mean weight of a training image is 1, so the learning rate keeps its meaning.
    mean = (loss.weights * torch.tensor(COUNTS)).sum() / sum(COUNTS)
    assert mean.item() == pytest.approx(1)


def test_one_hot_targets_equal_class_numbers_for_every_loss_that_takes_them():
    logits, target = batch()
    one_hot = F.one_hot(target, K).float()
    for name in ("cross_entropy", "focal", "logit_adjusted"):
        for weighting in WEIGHTINGS:
            for mining in MININGS:
                loss = build_loss(name, COUNTS, weighting=weighting, mining=mining)
                torch.testing.assert_close(loss(logits, one_hot), loss(logits, target))
    with pytest.raises(UserError, match="LDAM"):
        build_loss("ldam", COUNTS)(logits, one_hot)


def test_original_mining_ranks_the_weighted_losses_and_is_nan_for_one_image():
    logits, target = batch(size=9)
    weights = (1 / np.array(COUNTS)) / (1 / np.array(COUNTS)).sum()
    weighted = np.sort(weights[target.numpy()] * cross_entropies(logits, target))
    loss = build_loss("cross_entropy", COUNTS, weighting="original", mining="original")
    assert loss(logits, target).item() == pytest.approx(weighted[-4:].mean(), rel=1e-6)
    assert math.isnan(loss(logits[:1], target[:1]).item())


def test_hard_mining_ranks_before_weighting_normalises_and_keeps_at_least_one():
    logits, target = batch(size=9)
    plain = cross_entropies(logits, target)
    hardest = np.argsort(plain)[-4:]
    weights = (1 / np.array(COUNTS))[target.numpy()]
    expected = (weights * plain)[hardest].sum() / weights[hardest].sum()
    loss = build_loss("cross_entropy", COUNTS, weighting="balanced", mining="hard")
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-6)
    assert loss(logits[:1], target[:1]).item() == pytest.approx(plain[0], rel=1e-6)


def test_the_two_minings_choose_differently():
    # A hard image of the largest class and an easy one of the rarest: weights first prefers the rare one.
    logits = torch.tensor([[0.0, 2.0, 0, 0, 0], [0.0, 0, 0, 0, 1.0]], dtype=torch.float64)
    target = torch.tensor([0, 4])
    plain = cross_entropies(logits, target)
    assert plain[0] > plain[1]
    original = build_loss("cross_entropy", COUNTS, weighting="original", mining="original")
    hard = build_loss("cross_entropy", COUNTS, weighting="balanced", mining="hard")
    rare_weight = (1 / COUNTS[4]) / sum(1 / n for n in COUNTS)
    assert original(logits, target).item() == pytest.approx(rare_weight * plain[1], rel=1e-6)
    assert hard(logits, target).item() == pytest.approx(plain[0], rel=1e-6)


def test_focal_matches_its_formula_and_gamma_zero_is_cross_entropy():
    logits, target = batch()
    plain = cross_entropies(logits, target)
    for gamma in (0.0, 0.5, 2.0):
        expected = ((1 - np.exp(-plain)) ** gamma * plain).mean()
        assert build_loss("focal", COUNTS, gamma=gamma)(logits, target).item() == pytest.approx(expected)


def test_focal_has_a_finite_gradient_at_certainty():
    logits = torch.tensor([[200.0, 0, 0, 0, 0]], requires_grad=True)
    build_loss("focal", COUNTS, gamma=0.5)(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_effective_number_weights():
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    beta = 0.9
    expected = np.array([(1 - beta) / (1 - beta**n) for n in COUNTS])
    expected *= K / expected.sum()
    np.testing.assert_allclose(class_weights(counts, "effective", beta).numpy(), expected)
    np.testing.assert_allclose(class_weights(counts, "effective", 0.0).numpy(), 1)
    # As beta tends to 1 the effective number tends to the number: inverse frequency.
    near_one = class_weights(counts, "effective", 1 - 1e-9)
    np.testing.assert_allclose(near_one, K * (1 / counts) / (1 / counts).sum(), rtol=1e-5)
    logits, target = batch()
    torch.testing.assert_close(
        build_loss("cross_entropy", COUNTS, weighting="effective", beta=0.0)(logits, target),
        build_loss("cross_entropy", COUNTS)(logits, target),
    )


def test_ldam_margins_and_zero_margin_is_scaled_cross_entropy():
    logits, target = batch()
    margins = np.array(COUNTS) ** -0.25
    margins *= 0.5 / margins.max()
    moved = logits.clone()
    moved[torch.arange(len(target)), target] -= torch.tensor(margins)[target]
    expected = cross_entropies(4 * moved, target).mean()
    assert build_loss("ldam", COUNTS, scale=4.0)(logits, target).item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(
        build_loss("ldam", COUNTS, max_margin=0.0, scale=4.0)(logits, target),
        F.cross_entropy(4 * logits, target),
    )


def test_logit_adjustment_is_balanced_softmax_and_needs_an_uneven_prior():
    logits, target = batch()
    counts = np.array(COUNTS, dtype=float)
    z = np.exp(logits.numpy())
    balanced_softmax = counts * z / (counts * z).sum(axis=1, keepdims=True)  # Ren et al. 2020, equation 3
    expected = -np.log(balanced_softmax[np.arange(len(z)), target.numpy()]).mean()
    loss = build_loss("logit_adjusted", COUNTS)
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-6)
    plain = F.cross_entropy(logits, target)
    torch.testing.assert_close(build_loss("logit_adjusted", [7] * K)(logits, target), plain)
    torch.testing.assert_close(build_loss("logit_adjusted", COUNTS, tau=0.0)(logits, target), plain)


CASES = st.tuples(st.sampled_from(list(LOSSES)), st.sampled_from(WEIGHTINGS), st.sampled_from(MININGS))


@settings(max_examples=60, deadline=None)
@given(case=CASES, seed=st.integers(0, 10**6), size=st.integers(2, 12), shift=st.floats(-20, 20))
def test_every_combination_is_nonnegative_and_blind_to_order_and_shift(case, seed, size, shift):
    name, weighting, mining = case
    loss = build_loss(name, COUNTS, weighting=weighting, mining=mining)
    logits, target = batch(seed, size)
    value = loss(logits, target)
    assert value.ndim == 0 and value >= 0
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(logits[order], target[order]), value)
    torch.testing.assert_close(loss(logits + shift, target), value, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(case=CASES, seed=st.integers(0, 10**6), half=st.sampled_from([torch.bfloat16, torch.float16]))
def test_half_precision_logits_lose_nothing_but_their_own_rounding(case, seed, half):
    name, weighting, mining = case
    loss = build_loss(name, COUNTS, weighting=weighting, mining=mining)
    logits, target = batch(seed)
    logits = (20 * logits).to(half).requires_grad_()
    value = loss(logits, target)
    reference = loss(logits.detach().double(), target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=1e-6)
    value.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("name", "counts", "args", "words"),
    [
        ("cross_entropi", COUNTS, {}, "cross_entropy"),
        ("focal", COUNTS, {"gama": 1}, "gamma"),
        ("cross_entropy", COUNTS, {"gamma": 1}, "label_smoothing"),
        ("cross_entropy", COUNTS, {"weighting": "inverse"}, "balanced"),
        ("cross_entropy", COUNTS, {"mining": "soft"}, "hard"),
        ("cross_entropy", COUNTS, {"label_smoothing": 1.0}, r"\[0, 1\)"),
        ("cross_entropy", COUNTS, {"label_smoothing": "0.1"}, "须为一个数"),
        ("focal", COUNTS, {"gamma": math.nan}, "不能为负"),
        ("ldam", COUNTS, {"scale": 0}, "大于 0"),
        ("cross_entropy", COUNTS, {"keep": 0}, "keep"),
        ("cross_entropy", COUNTS, {"beta": 1}, "beta"),
        ("cross_entropy", COUNTS, {"beta": "0.9"}, "beta"),
        ("cross_entropy", COUNTS, {"keep": "0.5"}, "keep"),
        ("cross_entropy", (5, 0), {}, "某一类"),
    ],
)
def test_bad_input_is_refused_by_name(name, counts, args, words):
    with pytest.raises(UserError, match=words):
        build_loss(name, counts, **args)


def test_a_model_with_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match="5 类"):
        build_loss("cross_entropy", COUNTS)(torch.zeros(2, K + 1), torch.tensor([0, 1]))
