"""Token merging: nothing changes at r = 0, sizes are kept, and merged tokens weigh what they hold."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from labreport.analysis import latency
from vitlib.errors import UserError
from vitlib.models import count, create_model
from vitlib.models.tome import ToMe, bipartite_matching, encode, merge
from vitlib.models.weighted import key_bias, weighted_pool

SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 3, "ffn_hidden_channels": 24, "img_size": 16}


def build(**more):
    torch.manual_seed(0)
    model = create_model("vit", **{**SMALL, **more}).eval()
    for parameter in model.parameters():  # larger weights than at the start: tokens that really differ
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def images(n=3, side=16):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------ matching


def matched_by_hand(features, r):
    """The same matching for one image, by loops over tokens."""
    unit = [row / row.norm() for row in features]
    evens, odds = range(0, len(unit), 2), range(1, len(unit), 2)
    best = {i: max((float(unit[i] @ unit[j]), j) for j in odds) for i in evens}
    merging = sorted(evens, key=lambda i: -best[i][0])[:r]
    left = [i for i in range(len(unit)) if i not in merging]
    return [left.index(best[i][1] if i in merging else i) for i in range(len(unit))]


@pytest.mark.parametrize(("tokens", "r"), [(8, 1), (8, 4), (9, 3), (2, 1)])
def test_matching_equals_loops(tokens, r):
    features = torch.randn(5, tokens, 6, generator=torch.Generator().manual_seed(2))
    place = bipartite_matching(features, r)
    assert place.tolist() == [matched_by_hand(one, r) for one in features]
    assert (place.amax(1) == tokens - r - 1).all()


def test_the_most_similar_pair_merges():
    features = torch.eye(6)[None].clone()
    features[0, 4] = 3 * features[0, 1]  # the same direction: length does not count
    assert bipartite_matching(features, 1).tolist() == [[0, 1, 2, 3, 1, 4]]


def test_half_precision_merges_the_same_pairs():
    features = 1 + 1e-2 * torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16):
        half = bipartite_matching(features, 4)
    assert torch.equal(half, bipartite_matching(features, 4))


def test_merging_keeps_the_sum_over_patches():
    generator = torch.Generator().manual_seed(3)
    tokens, size = torch.randn(2, 7, 5, generator=generator), torch.tensor([[1.0, 2, 1, 3, 1, 1, 1]] * 2)
    merged, counts = merge(tokens, size, bipartite_matching(tokens, 3), 4)
    assert merged.shape == (2, 4, 5) and counts.sum(1).tolist() == [10, 10]
    torch.testing.assert_close(torch.einsum("bn,bnd->bd", counts, merged), torch.einsum("bn,bnd->bd", size, tokens))
    with torch.autocast("cpu", torch.bfloat16):  # thirds are not rounded there
        again, _ = merge(tokens, size, bipartite_matching(tokens, 3), 4)
    assert torch.equal(again, merged)


# ---------------------------------------------------------- the model


@pytest.mark.parametrize("pool", ["mean", "cls", "seq"])
@pytest.mark.parametrize("registers", [0, 2])
def test_without_merging_the_logits_are_exactly_the_models(pool, registers):
    model = build(pool=pool, registers=registers, layer_scale=0.5)
    with torch.no_grad():
        assert torch.equal(ToMe(model, 0)(images()), model(images()))


def test_merging_leaves_the_model_itself_alone():
    model = build()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(images())
        assert not torch.allclose(ToMe(model, 2)(images()), expected, atol=1e-4)
        assert torch.equal(model(images()), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("pool", ["mean", "cls", "seq"])
def test_an_image_is_answered_the_same_in_any_batch(pool):
    tome, batch = ToMe(build(pool=pool, registers=1), 3), images(5)
    with torch.no_grad():
        alone = torch.cat([tome(one[None]) for one in batch])
        torch.testing.assert_close(tome(batch), alone, atol=1e-5, rtol=1e-5)


def test_class_token_and_registers_are_never_merged():
    tome = ToMe(build(pool="cls", registers=2), 3)
    with torch.no_grad():
        tokens, size, groups = encode(tome.model, tome.model.embed(images()), tome.r)
    assert tokens.shape[1] == 3 + 16 - 3 * 3
    assert size[:, :3].tolist() == [[1, 1, 1]] * 3 and size.sum(1).tolist() == [19] * 3
    assert groups.shape == (3, 16)
    for row, counts in zip(groups, size[:, 3:], strict=True):  # the groups are the patches that the sizes count
        assert torch.bincount(row, minlength=7).tolist() == counts.tolist()


def test_at_most_half_of_the_tokens_merge_in_a_block():
    tome = ToMe(build(), 100)
    with torch.no_grad():
        tokens, size, groups = encode(tome.model, tome.model.embed(images()), tome.r)
        assert torch.isfinite(tome(images())).all()
    assert tokens.shape[1] == 2 and size.sum(1).tolist() == [16] * 3 and groups.max() == 1


def test_merged_tokens_count_for_what_they_hold_in_attention():
    """Attention over a token of size 2 equals attention over that token twice."""
    attention = build().blocks[0].attention
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(4))
    size = torch.tensor([[1.0, 2, 1, 1, 3]] * 2)
    spread_out = tokens.repeat_interleave(size[0].long(), dim=1)
    with torch.no_grad():
        short = attention(tokens, key_bias(size))
        long = attention(spread_out)
    torch.testing.assert_close(short, long[:, [0, 1, 3, 4, 5]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "seq"])
def test_merged_tokens_count_for_what_they_hold_in_pooling(pool):
    model = build(pool=pool)
    tokens = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(5))
    size = torch.tensor([[2.0, 1, 4, 1]] * 2)
    with torch.no_grad():
        pooled = weighted_pool(model, tokens, size)
        torch.testing.assert_close(pooled, model.pool(tokens.repeat_interleave(size[0].long(), dim=1)))


def test_merging_twins_changes_nothing():
    """An image of one colour has patches that differ by nothing: merging them is exact."""
    model, flat = build(pos="none"), torch.full((2, 3, 16, 16), 0.3)
    with torch.no_grad():
        torch.testing.assert_close(ToMe(model, 4)(flat), model(flat), atol=1e-5, rtol=1e-5)


def test_more_merging_costs_fewer_operations():
    model = create_model("vit")
    flops = [count(ToMe(model, r)).flops for r in (0, 2, 4, 8)]
    assert flops[0] == count(model).flops
    assert flops == sorted(flops, reverse=True) and flops[-1] < 0.7 * flops[0]
    assert count(ToMe(model, 8)).params == count(model).params


def test_it_can_be_trained_through():
    model = build().train()
    loss = F.cross_entropy(ToMe(model, 3)(images()), torch.tensor([0, 1, 2]))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.blocks[0].parameters())


def test_the_trained_variant_is_the_same_function():
    model = build()
    variant = create_model("tome", merge=3, **SMALL).eval()
    variant.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(variant(images()), ToMe(model, 3)(images()))


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(UserError, match="OriginalViT"):
        ToMe(create_model("original", **SMALL), 2)
    with pytest.raises(UserError, match="r=-1"):
        ToMe(build(), -1)


# ------------------------------------------------------------- latency


def test_models_take_turns_and_the_warm_up_does_not_count():
    order = []
    models = {"slow": lambda x: order.append("slow"), "fast": lambda x: order.append("fast")}
    times = latency.measure(models, images(), seconds=0, least=4)
    assert order == ["slow", "fast"] * 5
    assert {name: values.shape for name, values in times.items()} == {"slow": (4,), "fast": (4,)}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak, others do not")
def test_peak_memory_is_that_of_the_step_alone():
    def step(megabytes):
        return lambda: torch.ones(megabytes * 2**18).sum()

    large, small = (latency.peak_memory(step(size)) for size in (256, 16))
    assert 250 * 2**20 < large < 300 * 2**20 and small < 64 * 2**20


def test_times_are_told_by_median_and_quartiles():
    assert latency.spread(np.array([1, 2, 3, 4, 100]) / 1e3) == "3.00 [2.00, 4.00]"
