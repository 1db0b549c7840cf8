"""``create_model`` refuses what it does not know, by name, and the defaults are frozen."""

import pytest
import torch

from vitlib.errors import UserError
from vitlib.models import OriginalViT, ViT, count, create_model, model_defaults

COMMON = {
    "num_classes": 10,
    "in_channels": 3,
    "img_size": 32,
    "patch_size": 4,
    "d_model": 256,
    "num_heads": 4,
    "num_layers": 6,
    "ffn_hidden_channels": 512,
}
# Keys of stored runs leave defaults out. A new argument is added here; a line is never changed.
DEFAULTS = {
    "original": COMMON | {"dropout": 0.1, "classifier": True, "attention_noise": "original", "head": "original"},
    "vit": COMMON
    | {
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "drop_path": 0.0,
        "stem": "patch",
        "pos": "learned",
        "pool": "mean",
        "layer_scale": None,
        "registers": 0,
        "head_dim": 0,
        "norm": "layer",
        "scale": "head",
        "local_attention": False,
        "distill_token": False,
        "cosine_head": False,
    },
}


@pytest.mark.parametrize("name", ["original", "vit"])
def test_defaults_never_change(name):
    assert model_defaults(name) == DEFAULTS[name]


def test_models_by_name():
    with torch.device("meta"):
        assert isinstance(create_model("original"), OriginalViT)
    model = create_model("vit", num_classes=7, num_layers=1)
    assert isinstance(model, ViT)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vti", {}, ["vti", "是不是想写 vit"]),
        ("vit", {"patchsize": 4}, ["patchsize", "是不是想写 patch_size", "num_heads"]),
        ("vit", {"classifier": False}, ["没有参数 classifier"]),
        ("original", {"pool": "cls"}, ["没有参数 pool"]),
        ("vit", {"d_model": 100, "num_heads": 3}, ["d_model=100", "num_heads=3"]),
        ("original", {"num_heads": 3}, ["d_model=256", "num_heads=3"]),
        ("vit", {"img_size": 30}, ["img_size=30", "patch_size=4"]),
        ("vit", {"num_layers": -1}, ["num_layers=-1", "不小于 0"]),
        ("vit", {"num_heads": 2.0}, ["num_heads=2.0", "整数"]),
        ("vit", {"num_heads": True}, ["num_heads=True", "整数"]),
        ("vit", {"registers": -1}, ["registers=-1", "不小于 0"]),
        ("vit", {"dropout": 1.0}, ["dropout=1.0", "[0, 1)"]),
        ("vit", {"drop_path": -0.1}, ["drop_path=-0.1"]),
        ("vit", {"dropout": "0.1"}, ["dropout='0.1'"]),
        ("vit", {"pool": "max"}, ["pool='max'", "'seq'"]),
        ("vit", {"layer_scale": 0}, ["layer_scale=0"]),
        ("vit", {"pos": "sincos", "d_model": 6, "num_heads": 2}, ["4 的倍数"]),
        ("vit", {"stem": "conv", "patch_size": 1}, ["2 的幂"]),
        ("vit", {"stem": "hybrid", "patch_size": 1}, ["hybrid", "2 的幂"]),
        ("vit", {"stem": "pooled", "patch_size": 1}, ["pooled", "2 的幂"]),
        ("vit", {"stem": "wide", "patch_size": 1}, ["wide", "2 的幂"]),
        ("vit", {"stem": "pooled", "d_model": 8}, ["pooled", "d_model", "11"]),
        ("vit", {"stem": "conv", "patch_size": 6, "img_size": 36}, ["2 的幂", "6"]),
        ("original", {"classifier": 1}, ["classifier=1"]),
        ("original", {"attention_noise": "none"}, ["attention_noise='none'", "'dropout'"]),
    ],
)
def test_bad_arguments_are_refused_by_name(name, arguments, words):
    with pytest.raises(UserError) as error:
        create_model(name, **arguments)
    assert all(word in str(error.value) for word in words), error.value


def vit_flops(tokens, patches, width, hidden, layers, patch_values, classes):
    """Return 2 x multiply-adds, by hand."""
    embed = patches * patch_values * width
    projections = tokens * width * (3 * width + width)
    products = 2 * tokens * tokens * width  # q k^T and attention times v, over all heads
    ffn = 2 * tokens * width * hidden
    return 2 * (embed + layers * (projections + products + ffn) + width * classes)


def test_vit_flops_equal_the_formula():
    cost = count(create_model("vit"))
    assert cost.flops == vit_flops(64, 64, 256, 512, 6, 48, 10)
    model = create_model("vit", pool="cls", registers=2, num_layers=3, patch_size=8, num_classes=5)
    assert count(model).flops == vit_flops(19, 16, 256, 512, 3, 192, 5)
    assert count(model, image_size=64).flops == vit_flops(67, 64, 256, 512, 3, 192, 5)
    assert count(model).params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("classifier", [True, False])
def test_original_flops_equal_the_formula(classifier):
    with torch.device("meta"):
        model = create_model("original", classifier=classifier)
    encoder = vit_flops(64, 64, 256, 512, 6, 48, 0) - 2 * 6 * 64 * 256 * 256  # without output projections
    flat = 256 * 64
    head = flat * flat // 2 + flat // 2 * 10 if classifier else 64 * 256 * 48 + 32 * 32 * 27 * 3
    assert count(model).flops == encoder + 2 * head


def test_counting_leaves_no_trace():
    model = create_model("original", patch_size=16, d_model=8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    count(model)
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    count(model.eval())
    assert not model.training
