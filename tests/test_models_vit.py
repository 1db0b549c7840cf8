"""The modern ViT: equal to timm with copied weights, and true to the properties of attention."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitlib.errors import UserError
from vitlib.models import ViT, create_model
from vitlib.models.attention import Attention, attend
from vitlib.models.embedding import sincos_table
from vitlib.models.parts import DropPath

SMALL = {"d_model": 32, "num_heads": 4, "num_layers": 2, "ffn_hidden_channels": 64, "patch_size": 8}
few = settings(max_examples=15, deadline=None, derandomize=True)


def small(**changes):
    torch.manual_seed(0)
    return create_model("vit", **SMALL | changes)


TIMM_NAMES = {
    "patch_embed.proj": "stem",
    ".attn.": ".attention.",
    ".mlp.": ".ffn.",
    ".ls1.": ".scale1.",
    ".ls2.": ".scale2.",
}


def ours_from_timm(tensors, prefix_has_positions):
    """Rename timm's tensors (weights or gradients) to ours; its class token's position joins the token."""
    ours, prefix = {}, []
    for name, tensor in tensors.items():
        for theirs, mine in TIMM_NAMES.items():
            name = name.replace(theirs, mine)
        if name in ("cls_token", "reg_token"):
            prefix.append(tensor)
        else:
            ours[name] = tensor
    table = ours.pop("pos_embed")
    if prefix:
        ours["prefix_tokens"] = torch.cat(prefix, dim=1)
        if prefix_has_positions:
            count = ours["prefix_tokens"].shape[1]
            ours["prefix_tokens"], table = ours["prefix_tokens"] + table[:, :count], table[:, count:]
    return ours | {"positions.table": table}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"pool": "cls"}),  # timm as it comes
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {}),  # ours as it comes
        ({"init_values": 0.1, "no_embed_class": True}, {"pool": "cls", "layer_scale": 0.1}),
        ({"reg_tokens": 3, "no_embed_class": True}, {"pool": "cls", "registers": 3}),
        (
            {"class_token": False, "global_pool": "avg", "fc_norm": False, "reg_tokens": 2},
            {"registers": 2},
        ),
    ],
)
def test_equals_timm_in_logits_and_gradients(theirs, ours, training):
    torch.manual_seed(0)
    timm_model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=10, **theirs
    )
    for parameter in timm_model.parameters():
        nn.init.normal_(parameter, std=0.2)
    with_positions = not theirs.get("no_embed_class", False)
    model = small(**ours)
    model.load_state_dict(ours_from_timm(timm_model.state_dict(), with_positions))
    model.train(training), timm_model.train(training)

    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    logits, expected = model(images), timm_model(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    nn.functional.cross_entropy(logits, labels).backward()
    nn.functional.cross_entropy(expected, labels).backward()
    gradients = {name: p.grad for name, p in timm_model.named_parameters()}
    if with_positions:  # a sum's parts have the sum's gradient, so adding them would count it twice
        gradients |= {k: torch.zeros_like(g) for k, g in gradients.items() if k in ("cls_token", "reg_token")}
    expected_gradients = ours_from_timm(gradients, with_positions)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def test_sincos_positions_equal_timms():
    torch.testing.assert_close(sincos_table(4, 32), build_sincos2d_pos_embed([4, 4], 32))


@st.composite
def configurations(draw):
    heads, patch = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([2, 4, 8]))
    return {
        "num_classes": draw(st.integers(1, 12)),
        "in_channels": draw(st.sampled_from([1, 3])),
        "img_size": patch * draw(st.integers(1, 5)),
        "patch_size": patch,
        "num_heads": heads,
        "d_model": 4 * heads * draw(st.integers(1, 3)),
        "num_layers": draw(st.integers(1, 3)),
        "ffn_hidden_channels": draw(st.integers(1, 20)),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
        "attention_dropout": draw(st.sampled_from([0.0, 0.3])),
        "drop_path": draw(st.sampled_from([0.0, 0.3])),
        "stem": draw(st.sampled_from(["patch", "conv"])),
        "pos": draw(st.sampled_from(["learned", "sincos", "none"])),
        "pool": draw(st.sampled_from(["mean", "cls", "seq"])),
        "layer_scale": draw(st.sampled_from([None, 1e-3])),
        "registers": draw(st.integers(0, 2)),
        "norm": draw(st.sampled_from(["layer", "batch", "rms"])),
        "scale": draw(st.sampled_from(["head", "full"])),
    }


@few
@given(configurations(), st.integers(1, 3))
def test_every_valid_configuration_has_the_promised_shapes_and_learns(config, batch):
    torch.manual_seed(0)
    model = create_model("vit", **config)
    images = torch.randn(batch, config["in_channels"], config["img_size"], config["img_size"])
    prefix = config["registers"] + (config["pool"] == "cls")
    count, width = (config["img_size"] // config["patch_size"]) ** 2 + prefix, config["d_model"]

    tokens = model.embed(images)
    assert tokens.shape == (batch, count, width)
    assert model.pool(model.encode(tokens)).shape == (batch, width)
    logits = model(images)
    assert logits.shape == (batch, config["num_classes"])
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    features = model.eval().features(images)
    assert [t.shape for t in features.tokens] == [(batch, count, width)] * config["num_layers"]
    for attention in features.attention:
        assert attention.shape == (batch, config["num_heads"], count, count)
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))
    # the stages, one after the other, are the model
    end_to_end = model.head(model.pool(model.norm(features.tokens[-1])))
    torch.testing.assert_close(model(images), end_to_end)


def test_the_fused_kernel_computes_the_formula():
    torch.manual_seed(0)
    attention = Attention(d_model=32, num_heads=4, dropout=0.0, attention_dropout=0.0)
    x = torch.randn(2, 9, 32)
    values = attention.split_heads(x)[2]
    mixed = rearrange(attention.weights(x) @ values, "b h n d -> b n (h d)")
    torch.testing.assert_close(attention(x), attention.proj(mixed), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_in_bf16_on_a_processor_computes_the_formula_and_its_gradient(with_bias):
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, 17, 8, requires_grad=True) for _ in range(3)]
    bias = torch.randn(2, 3, 17, 17) if with_bias else None
    rough = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    wanted = F.scaled_dot_product_attention(*exact, bias)
    got = attend(*rough, bias if bias is None else bias.bfloat16())
    wanted.square().sum().backward()
    got.float().square().sum().backward()
    assert got.dtype == torch.bfloat16
    for ours, reference in ((got, wanted), *((r.grad, e.grad) for r, e in zip(rough, exact, strict=True))):
        assert (ours.float() - reference).norm() < 2e-2 * reference.norm()


def test_the_full_width_scale_flattens_the_attention_by_the_root_of_the_heads():
    torch.manual_seed(0)
    by_head = Attention(d_model=32, num_heads=4, dropout=0.0, attention_dropout=0.0)
    full = Attention(d_model=32, num_heads=4, dropout=0.0, attention_dropout=0.0, scale="full")
    full.load_state_dict(by_head.state_dict())
    x = torch.randn(2, 9, 32)
    sharp, flat = by_head.weights(x).log(), full.weights(x).log()
    # logits are known up to a constant a row: their spread shrinks by sqrt(4)
    torch.testing.assert_close(flat - flat.mean(-1, True), (sharp - sharp.mean(-1, True)) / 2)
    mixed = rearrange(full.weights(x) @ full.split_heads(x)[2], "b h n d -> b n (h d)")
    torch.testing.assert_close(full(x), full.proj(mixed), atol=1e-5, rtol=1e-5)


def test_the_norms_do_what_their_names_say():
    x = 3 + 2 * torch.randn(8, 5, 32)
    layer, batch, rms = (small(norm=norm).blocks[0].norm1(x) for norm in ("layer", "batch", "rms"))
    torch.testing.assert_close(layer.mean(-1), torch.zeros(8, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.mean((0, 1)), torch.zeros(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(rms.square().mean(-1), torch.ones(8, 5), atol=1e-4, rtol=0)
    assert rms.mean() > 0.5
    assert {type(m).__name__ for m in small(norm="batch").modules() if "Norm" in type(m).__name__} == {"TokenBatchNorm"}


@few
@given(st.permutations(range(16)), st.sampled_from(["mean", "seq"]))
def test_without_positions_the_order_of_patches_does_not_matter(order, pool):
    blind, seeing = small(pos="none", pool=pool).eval(), small(pool=pool).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    patches = rearrange(images, "b c (y p) (x q) -> b (y x) c p q", p=8, q=8)[:, order]
    shuffled = rearrange(patches, "b (y x) c p q -> b c (y p) (x q)", y=4)
    torch.testing.assert_close(blind(shuffled), blind(images), atol=1e-5, rtol=1e-4)
    tokens = blind.embed(images)
    torch.testing.assert_close(blind.encode(tokens[:, order]), blind.encode(tokens)[:, order], atol=1e-5, rtol=1e-4)
    if order != list(range(16)):
        assert (seeing(shuffled) - seeing(images)).abs().max() > 1e-4


def test_positions_stretch_to_other_image_sizes():
    model = small(pos="learned").eval()
    images = torch.randn(2, 3, 48, 48)
    assert model(images).shape == (2, 10)
    rows = torch.linspace(-1, 1, 4)[:, None, None].expand(4, 4, 32)
    model.positions.table.data = rows.reshape(1, 16, 32)
    stretched = rearrange(model.positions.resized(6), "1 (y x) d -> y x d", y=6)
    assert torch.allclose(stretched, stretched[:, :1])  # rows stay rows
    assert (stretched[1:] > stretched[:-1]).all()
    torch.testing.assert_close(stretched, -stretched.flip(0))


@pytest.mark.parametrize("size", [(32, 40), (36, 36)])
def test_images_that_do_not_fit_are_refused(size):
    with pytest.raises(UserError, match="图像大小"):
        small()(torch.randn(1, 3, *size))


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    out = drop(torch.ones(4000, 3, 2))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (out == out[:, :1, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.04)
    x = torch.randn(2, 3, 2)
    assert drop.eval()(x) is x


def test_drop_path_grows_linearly_with_depth():
    probabilities = [block.drop_path.probability for block in small(drop_path=0.2, num_layers=5).blocks]
    assert probabilities == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize("noise", ["dropout", "attention_dropout", "drop_path"])
def test_noise_is_in_training_only(noise):
    model, images = small(**{noise: 0.5}), torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_linear_weights_start_at_deviation_0_02():
    model = ViT(num_layers=1)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.12)
            assert not module.bias.any()


@pytest.mark.parametrize(
    "config",
    [
        {"drop_path": 0.1, "dropout": 0.1},
        {"pool": "cls", "stem": "conv", "registers": 1, "pos": "sincos", "layer_scale": 1e-4},
        {"pool": "seq", "attention_dropout": 0.1},
    ],
)
def test_compiles_into_one_graph(config):
    torch.compiler.reset()  # what other tests have compiled must not count against the limit
    model = small(**config)
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(images).shape == (2, 10)
    model.eval()
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("pos", ["learned", "sincos", "none"])
def test_between_the_blocks_tokens_are_float32_under_autocast_too(pos):
    model = create_model("vit", **SMALL, pos=pos)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.embed(torch.randn(2, 3, 16, 16))
        assert model.stem(torch.randn(2, 3, 16, 16)).dtype == torch.bfloat16  # autocast is on
        assert tokens.dtype == model.blocks[0](tokens).dtype == torch.float32


def test_bfloat16_stays_close_to_float32():
    model, images = small(pos="learned").eval(), torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
    torch.testing.assert_close(half.float(), model(images), atol=0.02, rtol=0.05)


def test_the_encoder_moves_to_another_task():
    source, target = small(pool="seq"), create_model("vit", **SMALL, num_classes=3)
    target.load_encoder(source.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(target.encode(target.embed(images)), source.encode(source.embed(images)))
    assert target.head.out_features == 3


def test_without_blocks_the_stem_and_the_head_are_left():
    bare = small(num_layers=0, pos="none").eval()
    images = torch.randn(3, 3, 32, 32)
    expected = bare.head(bare.norm(rearrange(bare.stem(images), "B D y x -> B (y x) D")).mean(dim=1))
    assert torch.equal(bare(images), expected) and bare.features(images).tokens == []
