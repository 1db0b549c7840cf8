"""DynamicViT, A-ViT and structured pruning: neutral settings change nothing, and what is left out is really gone."""

import pytest
import torch
import toy
from torch import nn

from vitlib.errors import UserError
from vitlib.models import count, create_model
from vitlib.models.transfer import cut, take_over
from vitlib.store import Store

SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 4, "ffn_hidden_channels": 24, "img_size": 16}


def build(name="vit", **more):
    torch.manual_seed(0)
    model = create_model(name, **{**SMALL, **more}).eval()
    for parameter in model.parameters():  # larger weights than at the start: tokens that really differ
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def images(n=5):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def halting(**more):
    """An A-ViT whose tokens halt at different depths: the first channel is spread around the threshold."""
    model = build("a_vit", **more)
    model.blocks[0].ffn.fc2.bias.data[0] = 1.7
    return model


# ------------------------------------------------------------ neutral settings


@pytest.mark.parametrize("pool", ["mean", "cls", "seq"])
@pytest.mark.parametrize(
    ("name", "off"), [("dynamic_vit", {"keep_ratio": 1.0}), ("a_vit", {"halting": False}), ("tome", {"merge": 0})]
)
def test_the_neutral_setting_is_the_base(name, off, pool):
    base, light = build(pool=pool, registers=1), create_model(name, **SMALL, pool=pool, registers=1, **off).eval()
    take_over(light, base.state_dict(), "all")
    with torch.no_grad():
        assert torch.equal(light(images()), base(images()))
    assert count(light) == count(base)


def test_tokens_that_never_halt_give_the_base():
    base, light = create_model("vit", **SMALL).eval(), create_model("a_vit", **SMALL).eval()
    take_over(light, base.state_dict(), "all")  # as at the start of training: a first channel near zero
    with torch.no_grad():
        assert (light.depths(images()) == 4).all()
        torch.testing.assert_close(light(images()), base(images()), atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------ gathering and masking


@pytest.mark.parametrize("pool", ["mean", "cls", "seq"])
@pytest.mark.parametrize("make", [lambda **m: build("dynamic_vit", keep_ratio=0.6, **m), halting])
def test_gathering_equals_masking_and_the_batch_does_not_matter(make, pool):
    model = make(pool=pool, registers=1)
    with torch.no_grad():
        gathered = model(images())
        torch.testing.assert_close(gathered, model(images(), gather=False), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gathered, torch.cat([model(x[None]) for x in images()]), atol=1e-5, rtol=1e-5)


def test_dropped_patches_are_not_looked_at():
    model = build("dynamic_vit", keep_ratio=0.5)
    with torch.no_grad():
        left = model.survivors(images())
        tokens, weight, _ = model.walk(images(), True)
    assert left.sum(2).tolist() == [[8, 4, 2]] * 5 and tokens.shape[1] == 2 and weight is None
    assert (left[:, 1] <= left[:, 0]).all() and (left[:, 2] <= left[:, 1]).all()  # nobody comes back
    assert count(model).flops < 0.75 * count(build()).flops


def test_half_precision_puts_patches_in_the_same_order():
    """Scores that differ by less than bfloat16 can tell would tie, and the top of the image would be kept."""
    predictor = build("dynamic_vit", keep_ratio=0.5).predictors[0]
    tokens = 1 + 1e-3 * torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2))
    exact = predictor(tokens, torch.ones(2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        scores = predictor(tokens, torch.ones(2, 16))
    assert torch.equal(scores, exact)
    assert (scores[0, :, 0].bfloat16().unique().numel() < 16) and (scores[0, :, 0].unique().numel() == 16)


def test_halted_tokens_leave_the_batch():
    model = halting()
    depth = model.depths(images())
    assert 1 < depth.float().mean() < 4 and len(depth.unique()) > 1
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    with torch.no_grad():
        model(images()[:1])
    assert seen == [int((depth[0] >= i + 1).sum()) for i in range(len(seen))]


def test_the_results_of_a_token_are_weighted_to_one():
    model = halting()
    with torch.no_grad():
        tokens = torch.ones_like(model.embed(images()))
        for block in model.blocks:  # blocks that change nothing: the weighted mean of equal states is the state
            block.forward = lambda x, bias=None: x
        tokens[..., 0] = 1.9
        result, _ = model.walk(tokens, False)
    torch.testing.assert_close(result, tokens)


def test_without_blocks_there_is_nothing_to_halt_and_the_image_still_counts():
    model, plain = build("a_vit", num_layers=0), build("vit", num_layers=0)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for mode in (True, False):
            torch.testing.assert_close(model.train(mode)(images()), plain.train(mode)(images()))


# ------------------------------------------------------------ training


@pytest.mark.parametrize("name", ["dynamic_vit", "a_vit"])
def test_training_reaches_every_weight_and_asks_for_less(name):
    model = build(name).train() if name == "dynamic_vit" else halting().train()
    loss = model(images()).square().mean() + model.auxiliary_loss
    loss.backward()
    assert model.auxiliary_loss.ndim == 0 and model.auxiliary_loss > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    if name == "dynamic_vit":
        assert all(p.grad.any() for p in model.predictors[0].parameters())


def test_an_image_that_would_lose_all_its_patches_keeps_the_best_judged_one():
    model = build("dynamic_vit", keep_ratio=0.5).train()
    for predictor in model.predictors:  # "drop" to every patch, in effect always
        predictor.out[4].weight.data.zero_()
        predictor.out[4].bias.data.copy_(torch.tensor([-20.0, 20.0]))
    logits = model(images())
    weight = model.encoded[1]
    assert (weight.sum(dim=1) == 1).all() and torch.isfinite(logits).all() and torch.isfinite(model.auxiliary_loss)
    logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_share_of_kept_patches_learns_its_ratio():
    model = build("dynamic_vit", keep_ratio=0.9).train()
    optimizer = torch.optim.Adam(model.predictors.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        model(images(16))
        model.auxiliary_loss.backward()
        losses.append(model.auxiliary_loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_ratios_must_be_ratios():
    with pytest.raises(UserError, match="keep_ratio=0"):
        create_model("dynamic_vit", keep_ratio=0)


# ------------------------------------------------------------ structured pruning


def test_pruning_nothing_changes_nothing():
    base = build()
    assert toy.same(cut(base.state_dict(), base), base.state_dict())


def test_the_most_important_heads_and_channels_stay():
    base, small = build(), create_model("vit", **{**SMALL, "num_heads": 1, "head_dim": 8, "ffn_hidden_channels": 10})
    for block in base.blocks:  # channels 0 to 13 and the first head do nothing: leaving them out must be exact
        for tensor in (block.ffn.fc1.weight[:14], block.ffn.fc1.bias[:14], block.ffn.fc2.weight[:, :14]):
            tensor.data.zero_()
        for rows in (slice(0, 8), slice(16, 24), slice(32, 40)):
            block.attention.qkv.weight.data[rows] = 0
            block.attention.qkv.bias.data[rows] = 0
        block.attention.proj.weight.data[:, :8] = 0
    take_over(small, base.state_dict(), "all")
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(images()), base(images()), atol=1e-5, rtol=1e-5)
    assert count(small).params < count(base).params and count(small).flops < count(base).flops


def test_a_pruned_model_is_trained_from_its_base_by_the_store(tmp_path):
    data, store = toy.toy(), Store(tmp_path / "runs", tmp_path / "published")
    few = {"num_heads": 1, "head_dim": 8, "ffn_hidden_channels": 8}
    pruned = toy.PLAIN.but(name="pruned", model_args=few, init_from=toy.PLAIN, transfer="all", epochs=1)
    run = store.get(pruned, 0, data, show=False)
    assert run.params < store.get(toy.PLAIN, 0, data, show=False).params
    model = run.load_model()
    assert isinstance(model.blocks[0].ffn.fc1, nn.Linear) and model.blocks[0].ffn.fc1.out_features == 8
    for name, more in (("dynamic_vit", {"keep_ratio": 0.5}), ("a_vit", {"target_depth": 1}), ("tome", {"merge": 2})):
        light = toy.PLAIN.but(name=name, model=name, model_args=more, init_from=toy.PLAIN, transfer="all", epochs=1)
        assert store.get(light, 0, data, show=False).has_weights
