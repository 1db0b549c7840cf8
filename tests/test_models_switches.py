"""Shifted patch tokens, the wide stem, local attention and the distillation token of the modern ViT."""

import pytest
import torch
from einops import rearrange
from torch import nn

from vitlib.errors import UserError
from vitlib.models import count, create_model
from vitlib.models.attention import Attention
from vitlib.models.embedding import BroadStem, ShiftedStem, WideStem
from vitlib.posthoc import PostHoc

SMALL = {"d_model": 32, "num_heads": 4, "num_layers": 2, "ffn_hidden_channels": 64, "patch_size": 8}


def small(**changes):
    torch.manual_seed(0)
    return create_model("vit", **SMALL | changes)


@pytest.mark.parametrize("side", [2, 4])
def test_shifted_patches_see_half_a_patch_further(side):
    stem, images = ShiftedStem(3, 8, side), torch.randn(2, 3, 16, 16)
    half, proj = side // 2, stem.proj
    around = nn.functional.pad(images, (half,) * 4)
    first, second = 1, 2  # any patch away from the edge
    top, left = first * side, second * side
    seen = []
    for down, right in ((0, 0), (-half, -half), (-half, half), (half, -half), (half, half)):
        y, x = top + down + half, left + right + half
        seen.append(around[:, :, y : y + side, x : x + side].flatten(1))
    expected = proj(stem.norm(torch.cat(seen, 1)))
    torch.testing.assert_close(stem(images)[:, :, first, second], expected)
    assert stem(images).shape == (2, 8, 16 // side, 16 // side)
    moved = images.clone()
    moved[:, :, top - half, left - half] += 1  # outside the patch, inside what it sees
    assert not torch.allclose(stem(moved)[:, :, first, second], expected)


def test_local_attention_is_the_papers_formula():
    torch.manual_seed(0)
    attention = Attention(32, 4, 0.0, 0.0, local=True)
    attention.sharpness.data.fill_(1.7)
    x = torch.randn(2, 9, 32)
    q, k, v = rearrange(attention.qkv(x), "B N (three h d) -> three B h N d", three=3, h=4)
    logits = 1.7 * q @ k.transpose(-2, -1) / 8**0.5
    weights = logits.masked_fill(torch.eye(9, dtype=torch.bool), -torch.inf).softmax(-1)
    torch.testing.assert_close(attention.weights(x), weights)
    torch.testing.assert_close(attention(x), attention.proj(rearrange(weights @ v, "B h N d -> B N (h d)")))
    assert attention.weights(x).diagonal(dim1=-2, dim2=-1).abs().max() == 0
    assert attention(x[:, :1]).isfinite().all()  # a token that is alone looks at itself
    attention(x).sum().backward()
    assert attention.sharpness.grad is not None


def test_local_attention_begins_as_plain_attention_but_for_the_diagonal():
    plain, local = small(), small(local_attention=True)
    missing, unexpected = local.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and {name.split(".")[-1] for name in missing} == {"sharpness"}
    assert all(block.attention.sharpness == 1 for block in local.blocks)


@pytest.mark.parametrize("pool", ["mean", "cls", "seq"])
def test_the_distillation_token_has_a_head_of_its_own(pool):
    model, images = small(distill_token=True, pool=pool, registers=1), torch.randn(3, 3, 32, 32)
    said, taught = model(images)
    tokens = model.encode(model.embed(images))
    torch.testing.assert_close(said, model.head(model.pool(tokens)))
    torch.testing.assert_close(taught, model.distill_head(tokens[:, model.num_prefix_tokens - 1]))
    torch.testing.assert_close(model.eval()(images), (said + taught) / 2)
    without = small(pool=pool, registers=1)
    assert without.num_prefix_tokens == model.num_prefix_tokens - 1 and without.distill_head is None


def test_the_wide_stem_begins_by_passing_on_what_does_not_narrow():
    stem, x = WideStem(3, 256, 8), torch.randn(2, 64, 8, 8)
    convolutions = [layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [24, 64, 64, 256, 256, 256, 256]
    torch.testing.assert_close(convolutions[2](x), x)
    torch.testing.assert_close(convolutions[3](x)[:, :64], x)
    assert convolutions[3](x)[:, 64:].std() > 0.1 and not torch.allclose(convolutions[0](x[:, :3])[:, :3], x[:, :3])
    *_, narrows, last = [layer for layer in WideStem(3, 16, 4).modules() if isinstance(layer, nn.Conv2d)]
    assert narrows.weight.count_nonzero() == narrows.weight.numel()  # 64 channels into 16 cannot be passed on
    torch.testing.assert_close(last(x[:, :16]), x[:, :16])


def test_the_broad_stem_is_the_wide_one_with_more_channels():
    stem, x = BroadStem(3, 320, 8), torch.randn(2, 128, 8, 8)
    convolutions = [layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [24, 128, 128, 384, 384, 320, 320]
    torch.testing.assert_close(convolutions[3](x)[:, :128], x)


@pytest.mark.parametrize(
    "switch",
    [
        {"stem": "shifted"},
        {"local_attention": True},
        {"stem": "conv", "patch_size": 2, "img_size": 16},
        {"stem": "hybrid"},
        {"stem": "hybrid", "patch_size": 2, "img_size": 16},
        {"stem": "pooled"},
        {"stem": "pooled", "patch_size": 8, "norm": "batch"},
        {"stem": "wide"},
        {"stem": "wide", "patch_size": 8, "norm": "batch", "layer_scale": 0.1},
        {"stem": "broad", "patch_size": 8, "norm": "batch", "layer_scale": 0.1},
    ],
)
def test_switches_work_with_one_graph_and_in_half_precision(switch):
    model, side = small(**switch), switch.get("img_size", 32)
    images = torch.randn(2, 3, side, side)
    torch.compiler.reset()  # which gives up after eight versions of one function
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
    torch.testing.assert_close(half.float(), model(images), atol=0.03, rtol=0.1)
    assert model.embed(images).shape[1] == (side // model.patch_size) ** 2


def test_a_cosine_heads_logits_do_not_depend_on_lengths():
    model, images = small(cosine_head=True).eval(), torch.rand(5, 3, 32, 32)
    features = model.pool(model.encode(model.embed(images)))
    logits = model(images)
    cosines = nn.functional.normalize(features) @ nn.functional.normalize(model.head.weight).T
    torch.testing.assert_close(logits, cosines)
    torch.testing.assert_close(model.head(7 * features), logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.head(features).dtype == torch.float32
    model.head.weight.data *= torch.rand(10, 1) + 0.5
    torch.testing.assert_close(model(images), logits)
    assert count(small()).params - count(model).params == 10  # no bias


def test_a_correction_of_the_bias_needs_one():
    with pytest.raises(UserError, match="cosine_head"):
        PostHoc("logit_adjustment").apply(small(cosine_head=True), [5] * 10)
