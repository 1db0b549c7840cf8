"""Muon against torch's own, on convolutions, and where a gradient is not finite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy

from vitlib.muon import Muon, orthogonal
from vitlib.recipe import Recipe
from vitlib.state import build_model, make_optimizer

RECIPE = Recipe(
    optimizer="muon", lr=0.02, weight_decay=0.1, model_args={"d_model": 16, "num_layers": 1, "stem": "conv"}
)


def learn(optimizer, weights, steps=4):
    """Take steps with gradients drawn from one seed; return the weights."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weights


def weights(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def ours(listed, matrix=True):
    return Muon([{"params": listed, "weight_decay": 0.1, "matrix": matrix}], lr=0.02, fused=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_directions_become_nearly_orthogonal(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonal(matrix[None])[0] @ v.T  # in the basis of the matrix: its new singular values
    big = values > 0.05 * values.norm()
    assert ((found.diagonal()[big] > 0.5) & (found.diagonal()[big] < 1.4)).all()
    assert (found - found.diagonal().diag()).abs().max() < 0.15


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_directions_are_made_in_what_the_processor_computes_in(monkeypatch, dtype):
    monkeypatch.setattr("vitlib.muon.autocast_dtype", lambda device: dtype)
    found = orthogonal(torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(found, found.bfloat16().float()) == (dtype is torch.bfloat16)


def test_matrices_move_as_with_torchs_own_muon():
    shapes = [(8, 8), (24, 8), (8, 24), (8, 8)]
    theirs = torch.optim.Muon(weights(*shapes), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    expected = learn(theirs, theirs.param_groups[0]["params"])
    mine = learn(ours(start := weights(*shapes)), start)
    for a, b, before in zip(mine, expected, weights(*shapes), strict=True):
        moved = (b - before).abs().mean()
        assert (
            (a - b).abs().mean() < 0.1 * moved and moved > 0.005
        )  # theirs rounds to bfloat16 on the way, ours where the processor has it


def test_everything_else_moves_as_with_adamw():
    theirs = torch.optim.AdamW(weights(8, (3, 4)), lr=0.02, weight_decay=0.1, fused=True)
    expected = learn(theirs, theirs.param_groups[0]["params"])
    mine = learn(ours(start := weights(8, (3, 4)), matrix=False), start)
    assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))


def test_a_convolution_moves_as_the_matrix_it_is():
    flat, kernel = weights((6, 18)), weights((6, 2, 3, 3))
    assert torch.equal(flat[0].view(6, 2, 3, 3), kernel[0])
    learn(ours(flat), flat), learn(ours(kernel), kernel)
    torch.testing.assert_close(kernel[0].flatten(1), flat[0])


def test_a_step_that_is_not_finite_changes_nothing():
    listed = weights((8, 8), 8)
    optimizer = Muon(
        [{"params": listed[:1], "weight_decay": 0.1, "matrix": True}, {"params": listed[1:], "matrix": False}],
        lr=0.02, fused=True,
    )  # fmt: skip
    learn(optimizer, listed)
    before = [each.detach().clone() for each in listed], optimizer.state[listed[0]]["momentum"].clone()
    for weight in listed:
        weight.grad = torch.full_like(weight, float("nan"))
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), None
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(listed, before[0], strict=True))
    assert torch.equal(optimizer.state[listed[0]]["momentum"], before[1])


def test_the_encoders_weights_are_its_matrices():
    model = build_model(RECIPE, toy().num_classes, 16)
    groups = make_optimizer(RECIPE, model).param_groups
    matrices = {id(p) for group in groups if group["matrix"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in matrices}
    assert {"stem.0.weight", "blocks.0.attention.qkv.weight", "blocks.0.ffn.fc2.weight"} <= names
    assert not {"head.weight", "positions.table", "blocks.0.norm1.weight", "blocks.0.ffn.fc1.bias"} & names
    assert {group["weight_decay"] for group in groups if group["matrix"]} == {0.1}


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_other_optimisers_have_no_matrices(optimizer):
    recipe = RECIPE.but(optimizer=optimizer)
    assert not any(group["matrix"] for group in make_optimizer(recipe, build_model(recipe, 3, 16)).param_groups)
