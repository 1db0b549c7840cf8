"""The original model: exact against a second implementation in plain loops, with its defects shown."""

import math

import pytest
import torch
import torch.nn.functional as F

from vitlib.errors import UserError
from vitlib.models import OriginalViT, create_model

TINY = {"patch_size": 8, "d_model": 12, "num_heads": 3, "num_layers": 2, "ffn_hidden_channels": 20}


def tiny(**changes):
    torch.manual_seed(0)
    return create_model("original", **TINY | changes)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({"patch_size": 4}, 137_083_658),
        ({"patch_size": 8}, 11_223_818),
        ({"patch_size": 16}, 3_490_058),
        ({"classifier": False}, 2_788_183),
    ],
)
def test_parameter_counts_are_the_original_ones(changes, parameters):
    with torch.device("meta"):
        model = OriginalViT(**changes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def attention_by_loops(state, x, heads, dropout):
    """Compute the original's attention head by head and patch by patch, from the description alone."""
    images, width, rows, columns = x.shape
    patches, each = rows * columns, width // heads
    qkv = torch.stack([image.reshape(width, -1).T @ state["qkv.weight"][:, :, 0, 0].T for image in x])
    noise = torch.rand(images, heads, patches, patches) < dropout if dropout else None
    out = torch.zeros(images, patches, width)
    for image in range(images):
        for head in range(heads):
            channels = slice(head * each, (head + 1) * each)
            q, k, v = (qkv[image][:, part * width : (part + 1) * width][:, channels] for part in range(3))
            for i in range(patches):
                logits = torch.stack([q[i] @ k[j] for j in range(patches)]) / math.sqrt(width)
                if noise is not None:
                    logits[noise[image, head, i]] = -math.inf
                out[image, i, channels] = torch.softmax(logits, 0) @ v
    return out.transpose(1, 2).reshape(images, width, rows, columns)


def forward_by_loops(model, images, dropout=0.0):
    """Run the whole original in evaluation mode with nothing shared but its weights."""

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in model.state_dict().items() if k.startswith(prefix)}

    def norm(x, p):
        shape = (1, -1, 1, 1)
        x = (x - p["running_mean"].view(shape)) / (p["running_var"].view(shape) + 1e-5).sqrt()
        return x * p["weight"].view(shape) + p["bias"].view(shape)

    x = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    size = TINY["patch_size"]
    embedding = part("patch_embedding.")
    x = F.conv2d(x, embedding["weight"], embedding["bias"], stride=size)
    for index in range(TINY["num_layers"]):
        p = f"blocks.{index}."
        x = x + attention_by_loops(part(p + "attention."), norm(x, part(p + "norm1.")), TINY["num_heads"], dropout)
        ffn = part(p + "ffn.")
        y = F.gelu(F.conv2d(norm(x, part(p + "norm2.")), ffn["0.weight"], ffn["0.bias"]))
        x = x + F.conv2d(y, ffn["3.weight"], ffn["3.bias"])
    head = part("head.")
    x = F.gelu(x.reshape(len(x), -1) @ head["1.weight"].T + head["1.bias"])
    return x @ head["3.weight"].T + head["3.bias"]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("side", [32, 20])
def test_equals_a_second_implementation(dropout, side):
    model = tiny(dropout=dropout)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
        torch.nn.init.uniform_(norm.weight), torch.nn.init.uniform_(norm.bias)
    model.eval()
    images = torch.rand(2, 3, side, side) * 2 - 1
    with torch.no_grad():
        torch.manual_seed(7)
        got = model(images)
        torch.manual_seed(7)
        torch.testing.assert_close(got, forward_by_loops(model, images, dropout), atol=1e-5, rtol=1e-4)


def test_weights_start_xavier_uniform():
    model = create_model("original", patch_size=8, d_model=32, num_layers=1)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            fan_in, fan_out = weight[0].numel(), weight.numel() // weight.shape[1]
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert weight.abs().max() <= bound
            assert weight.abs().max() > 0.95 * bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_two_evaluations_of_one_model_differ_until_corrected():
    images = torch.randn(4, 3, 32, 32)
    noisy, corrected = tiny(dropout=0.1).eval(), tiny(dropout=0.1, attention_noise="dropout").eval()
    corrected.load_state_dict(noisy.state_dict())
    with torch.no_grad():
        assert not torch.equal(noisy(images), noisy(images))
        torch.testing.assert_close(corrected(images), corrected(images), rtol=0, atol=0)
        torch.manual_seed(3)
        first = noisy(images)
        torch.manual_seed(3)
        assert torch.equal(first, noisy(images))
        assert not torch.equal(corrected.train()(images), corrected(images))


def patch16(**changes):
    torch.manual_seed(0)
    return create_model("original", patch_size=16, d_model=8, ffn_hidden_channels=8, **changes)


def test_patch_16_turns_into_nan_and_then_always_says_class_0():
    images = torch.randn(512, 3, 32, 32)
    with torch.no_grad():
        logits = patch16()(images)
        assert logits.isnan().all()  # BatchNorm spreads one image's NaN over the batch
        assert logits.argmax(dim=1).eq(0).all()
        assert patch16(attention_noise="dropout")(images).isfinite().all()


def test_the_rate_of_nan_at_patch_16_is_the_predicted_one():
    rows = 6 * 4 * 4  # blocks, heads, tokens: each row of 4 logits is lost with probability 0.1^4
    expected = 1 - (1 - 0.1**4) ** rows
    images, model = 4096, patch16().eval()
    with torch.no_grad():
        lost = model(torch.randn(images, 3, 32, 32)).isnan().any(dim=1).float().mean().item()
    assert lost == pytest.approx(expected, abs=4 * math.sqrt(expected / images))


def test_autoencoder_returns_images_and_its_encoder_moves_over_exactly():
    autoencoder = tiny(classifier=False, dropout=0.0)
    images = torch.randn(8, 3, 32, 32)
    decoded = autoencoder(images)  # in training mode, so that BatchNorm's statistics move
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1

    torch.manual_seed(1)
    model = create_model("original", **TINY, dropout=0.0)
    head = model.head[1].weight.detach().clone()
    model.load_encoder(autoencoder.state_dict())
    autoencoder.eval(), model.eval()
    assert torch.equal(model.encode(model.embed(images)), autoencoder.encode(autoencoder.embed(images)))
    assert torch.equal(model.head[1].weight, head)
    names = {id(p): name for name, p in model.named_parameters()}
    encoder = {names[id(p)] for p in model.encoder_parameters()}
    assert encoder == {name for name in names.values() if name.startswith(("patch_embedding.", "blocks."))}


@pytest.mark.parametrize("change", [{"d_model": 24}, {"num_layers": 3}, {"num_layers": 1}, {"patch_size": 4}])
def test_an_encoder_that_does_not_fit_is_refused_and_nothing_is_copied(change):
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match="预训练编码器"):
        model.load_encoder(create_model("original", **TINY | change, classifier=False).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_linear_head_reads_the_mean_patch():
    model = tiny(head="linear", dropout=0.0).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = model.encode(model.embed(images))
    expected = tokens.mean(dim=(2, 3)) @ model.head[-1].weight.T + model.head[-1].bias
    torch.testing.assert_close(model(images), expected)
