"""Lighter after training: pruned and quantised weights, exported files, and attention by every kernel."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch_pruning
import toy
from torch import nn

from labreport.analysis import kernels, latency, prune, quantised
from vitlib.cli import main
from vitlib.cost import count_on
from vitlib.errors import UserError
from vitlib.evaluate import predict
from vitlib.light import quantize
from vitlib.light.export import CPU, OnnxModel, export, load_onnx, to_onnx
from vitlib.models import count, create_model
from vitlib.models.transfer import channel_norms, head_norms
from vitlib.store import Store
from vitlib.weights import load_trained, save_weights

LIGHT = toy.PLAIN.but(
    name="toy-light", model="dynamic_vit", model_args={"keep_ratio": 0.5, "num_layers": 2}, epochs=20, batch_size=16
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained DynamicViT, its test images, and a folder with its weights and its ONNX file."""
    folder, data = tmp_path_factory.mktemp("light"), toy.toy(train=240, test=90)
    run = Store(folder / "runs", folder / "published").get(LIGHT, 0, data, show=False)
    save_weights(folder / "light.safetensors", run.load_state(), run.record)
    model = load_trained(str(folder / "light.safetensors"))
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr("vitlib.commands._load", lambda options, cut: data)
        given = [str(folder / "light.safetensors"), "--out", str(folder / "light.onnx"), "--int8", "--json"]
        assert main(["export", *given]) == 0
    return model, data.test, folder, json.loads(said.getvalue())


def accuracy(model, images):
    logits = predict(model, images.images, device=CPU, normalize="half", precision="float32")
    return float((logits.argmax(1) == images.labels).double().mean())


# ------------------------------------------------------------ export


def test_both_files_give_pytorchs_answers_for_any_batch(trained):
    model, _, folder, facts = trained
    assert facts["images"] == 90 and [row["path"].split(".", 1)[1] for row in facts["files"]] == [
        "onnx", "pt2", "int8.onnx"
    ]  # fmt: skip
    assert all(row["difference"] < 1e-5 and row["same_answers"] > 0.98 for row in facts["files"][:2]), facts
    assert facts["files"][2]["same_answers"] > 0.9
    pixels = torch.randn(7, 3, 16, 16)
    with torch.no_grad():
        for part in (pixels, pixels[:1]):
            torch.testing.assert_close(OnnxModel(folder / "light.onnx")(part), model.model(part), atol=1e-4, rtol=1e-4)


def test_a_light_model_survives_the_round_trip_and_predicts(trained, tmp_path, capsys, monkeypatch):
    model, test, folder, _ = trained
    again = load_trained(str(folder / "light.onnx"))
    assert again.class_names == model.class_names and again.recipe == model.recipe
    assert accuracy(again.model, test) == accuracy(model.model, test) > 0.9
    from PIL import Image

    picture = tmp_path / "one.png"
    Image.fromarray(test.images[0].permute(1, 2, 0).numpy()).save(picture)
    for name in ("light.onnx", "light.int8.onnx", "light.safetensors"):
        assert main(["predict", str(picture), "--model", str(folder / name), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["predictions"]
        assert row["class"] == model.class_names[int(test.labels[0])]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit", {"num_heads": 1, "head_dim": 8, "ffn_hidden_channels": 8}),  # as structured pruning leaves it
        ("vit", {"stem": "conv", "pool": "seq"}),
        ("vit", {"distill_token": True}),
        ("tome", {"merge": 8}),
    ],
    ids=["pruned", "conv, seq", "token-distilled", "merging"],
)
def test_every_kind_of_light_model_is_the_same_in_onnx(name, more, tmp_path):
    torch.manual_seed(0)
    model = create_model(name, **{**toy.TINY, "num_layers": 2, **more}).eval()
    for parameter in model.parameters():  # larger weights than at the start: tokens that really differ
        parameter.data += 0.1 * torch.randn_like(parameter)
    path, pixels = to_onnx(model, 32, tmp_path / "x.onnx"), torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        for part in (pixels, pixels[:1]):
            torch.testing.assert_close(OnnxModel(path)(part), model(part), atol=1e-4, rtol=1e-3)


def test_a_foreign_file_is_told_in_one_line(tmp_path):
    broken, foreign = tmp_path / "broken.onnx", tmp_path / "foreign.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(UserError, match="不是完好的 ONNX"):
        load_onnx(broken)
    to_onnx(nn.Flatten(), 16, foreign)
    with pytest.raises(UserError, match="没有说明类别"):
        load_onnx(foreign)


def test_what_is_onnx_already_or_would_lie_where_its_neighbour_lies_is_not_exported(trained, tmp_path):
    model, _, folder, _ = trained
    for given, path in ((model, "x.pt2"), (load_onnx(folder / "light.onnx"), "x.onnx")):
        with pytest.raises(UserError, match=r"PyTorch 的权重与一个 \.onnx 文件名"):
            export(given, toy.toy(), tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_a_model_whose_work_depends_on_the_image_is_not_exported(tmp_path):
    with pytest.raises(UserError, match="A-ViT"):
        to_onnx(create_model("a_vit", **toy.TINY), 32, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------ fewer bits


@pytest.mark.parametrize("how", ["dynamic", "static", "weights 8", "weights 4"])
def test_quantised_accuracy_stays_within_a_bound(trained, how, tmp_path):
    model, test, folder, _ = trained
    source, out = folder / "light.onnx", tmp_path / "q.onnx"
    if how == "static":
        parts = quantize.modules(source)
        assert {"stem", "blocks.0", "blocks.1", "head"} <= parts.keys()
        quantize.static(source, out, test.images[:40], "half", but=["stem"])
        left = {node.name for node in onnx.load(out).graph.node}
        assert set(parts["stem"]) <= left
    elif how == "dynamic":
        quantised.dynamic(source, out)
    else:
        quantised.weight_only(source, out, int(how[-1]))
    assert accuracy(OnnxModel(out), test) >= accuracy(model.model, test) - 0.05
    assert {node.op_type for node in onnx.load(out).graph.node} & {
        "MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "QuantizeLinear", "MatMulNBits",
    }  # fmt: skip


def test_sensitivity_is_measured_module_by_module(trained):
    _, test, folder, _ = trained
    errors = quantize.sensitivity(folder / "light.onnx", test.images[:20], "half")
    assert errors.keys() == quantize.modules(folder / "light.onnx").keys()
    assert all(0 <= error < 0.5 for error in errors.values()) and max(errors.values()) > 0


def test_only_a_small_module_is_left_in_float(trained):
    _, test, folder, _ = trained
    source = folder / "light.onnx"
    assert quantize.left_in_float(source, {"blocks.0": 3.0, "head": 2.0, "blocks.1": 4.0}) == ["head"]
    assert quantize.left_in_float(source, {"blocks.0": 3.0}) == []
    whole, part = (
        quantize.static(source, folder / f"{len(but)}.onnx", test.images[:40], "half", but=but).stat().st_size
        for but in ([], ["head"])
    )
    assert abs(whole - part) < 0.1 * whole and part < source.stat().st_size


@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_int8_weights_take_seven_bits_so_that_no_processor_saturates(trained, way):
    """Without VNNI a processor adds two products in 16 bits: 2 * 255 * 127 does not fit, 2 * 255 * 64 does."""
    _, test, folder, _ = trained
    out = folder / f"{way}.onnx"
    if way == "static":
        quantize.static(folder / "light.onnx", out, test.images[:40], "half")
    else:
        quantised.dynamic(folder / "light.onnx", out)
    weights = [onnx.numpy_helper.to_array(each) for each in onnx.load(out).graph.initializer]
    integers = [each for each in weights if each.dtype == np.int8 and each.ndim > 1]
    assert len(integers) >= 8 and max(np.abs(each.astype(int)).max() for each in integers) == 64


def test_the_published_int8_is_calibrated_on_every_class_and_leaves_the_most_sensitive_module(trained, monkeypatch):
    model, _, folder, _ = trained
    data, seen = toy.toy(train=960, test=10), {}
    data = replace(data, train=data.train.take(torch.argsort(data.train.labels, stable=True)))  # as files come
    static, found = quantize.static, {"blocks.0": 3.0, "stem": 2.0, "head": 1.0}
    monkeypatch.setattr(quantize, "sensitivity", lambda path, images, *_: seen.update(few=images) or found)
    monkeypatch.setattr(
        quantize, "static", lambda path, out, images, normalize, but: seen.update(all=images, but=but)
        or static(path, out, images, normalize, but=but),
    )  # fmt: skip
    export(model, data, folder / "again.onnx", int8=True)
    drawn = data.split(seed=0)[1].sample(64)
    assert (
        seen["but"] == ["head"]
        and torch.equal(seen["all"], drawn.images)
        and torch.equal(seen["few"], drawn.images[:32])
    )
    assert min(drawn.counts(3)) >= 21 and min(drawn.take(torch.arange(32)).counts(3)) >= 10


# ------------------------------------------------------------ fewer weights


def test_magnitude_pruning_zeroes_the_smallest_weights_and_leaves_the_model_alone(trained):
    model = trained[0].model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert toy.same(prune.magnitude(model, 0.0).state_dict(), before)
    half = prune.magnitude(model, 0.5)
    assert toy.same(model.state_dict(), before) and count(half) == count(model)
    linear = torch.cat([module.weight.flatten() for module in half.modules() if isinstance(module, nn.Linear)])
    kept = linear[linear != 0].abs().min()
    full = torch.cat([module.weight.flatten() for module in model.modules() if isinstance(module, nn.Linear)])
    assert abs((linear == 0).double().mean() - 0.5) < 0.01 and (full.abs()[linear == 0] <= kept).all()
    assert prune.packed_bytes(half) < 0.8 * prune.packed_bytes(model)
    with pytest.raises(UserError, match=r"1\.5"):
        prune.magnitude(model, 1.5)


def test_importance_equals_torch_prunings():
    torch.manual_seed(0)
    base = create_model("vit", **{**toy.TINY, "num_layers": 2}).eval()
    graph = torch_pruning.DependencyGraph().build_dependency(
        base, torch.zeros(1, 3, 32, 32), unwrapped_parameters=[(base.positions.table, 2)]
    )
    fc1 = base.blocks[1].ffn.fc1
    group = graph.get_pruning_group(fc1, torch_pruning.prune_linear_out_channels, idxs=list(range(fc1.out_features)))
    measure = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None, bias=True)
    torch.testing.assert_close(channel_norms(base.state_dict(), 1), measure(group), atol=1e-6, rtol=1e-5)
    assert head_norms(base.state_dict(), 1, 8).shape == (2,)


# ------------------------------------------------------------ what it costs


def test_operations_are_counted_on_what_really_runs():
    torch.manual_seed(0)
    model, halting = create_model("vit", **toy.TINY), create_model("a_vit", **{**toy.TINY, "num_layers": 3}).eval()
    images = torch.randn(3, 3, 32, 32)
    assert count_on(model.eval(), images) == count(model).flops
    halting.blocks[0].ffn.fc2.bias.data[0] = 30.0  # all tokens halt after the first block
    assert count_on(halting, images) < 0.5 * count(halting).flops


def test_threads_are_set_for_a_while():
    before = torch.get_num_threads()
    with latency.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_each_kernel_proves_that_it_ran_or_says_why_not():
    rows = {row.kernel: row for row in kernels.measure(64, CPU, heads=2, width=8)}
    assert [*rows] == [*kernels.KERNELS]
    for name in ("逐步计算", "SDPA math", "SDPA flash"):
        row = rows[name]
        assert 0 < row.low <= row.seconds <= row.high and row.bytes > 0 and row.rounds >= 50
        assert kernels.KERNELS[name].operator in row.ran
    assert rows["逐步计算"].bytes >= 2 * 64 * 64 * 4 > rows["SDPA flash"].bytes - 64 * 16 * 4
    assert "没有这个后端" in rows["SDPA cuDNN"].reason and np.isnan(rows["SDPA cuDNN"].seconds)
    again = [kernels.Row(**kernels.packed(row)) for row in rows.values()]
    assert [kernels.packed(row) for row in again] == [kernels.packed(row) for row in rows.values()]


def test_kernels_take_turns_and_the_clock_starts_after_the_context(monkeypatch):
    story = []

    @contextlib.contextmanager
    def entered(_):
        story.append("context")
        yield

    def kernel(name):
        return kernels.Kernel(lambda *x: story.append(name) or kernels.naive(*x), "aten::softmax", "backend")

    monkeypatch.setattr(kernels, "sdpa_kernel", entered)
    monkeypatch.setattr(kernels, "KERNELS", {name: kernel(name) for name in "ab"})
    clock = kernels.time.perf_counter
    monkeypatch.setattr(kernels.time, "perf_counter", lambda: story.append("clock") or clock())
    assert [row.rounds for row in kernels.measure(4, CPU, "ab", rounds=2)] == [2, 2]
    assert story[4:] == 2 * ["context", "clock", "a", "clock", "context", "clock", "b", "clock"]
    long = kernels.measure(4, CPU, "ab", rounds=50, seconds=0.0, least=3)
    assert [row.rounds for row in long] == [3, 3]


def test_a_fallback_is_never_timed_under_anothers_name(monkeypatch):
    monkeypatch.setitem(kernels.KERNELS, "xFormers", kernels.Kernel(kernels.naive, "xformers"))
    monkeypatch.setitem(kernels.KERNELS, "wrong", kernels.Kernel(lambda q, k, v: v.softmax(-1), "aten::softmax"))
    other, wrong = kernels.measure(16, CPU, ("xFormers", "wrong"), rounds=1)
    assert "实际运行的不是它" in other.reason and np.isnan(other.seconds)
    assert "相差" in wrong.reason and wrong.rounds == 0


def test_why_xformers_refuses_is_told_by_its_reasons():
    error = NotImplementedError(
        "No operator found for `forward` with inputs:\n     query : shape=(1, 64, 4, 64)\n"
        "`fa3` is not supported because:\n    requires device with capability > (9, 0)\n    operator wasn't built\n"
        "`cutlass` is not supported because:\n    operator wasn't built\n"
    )
    assert kernels.told(error) == (
        "No operator found for `forward`；requires device with capability > (9, 0)；operator wasn't built"
    )
    assert kernels.told(RuntimeError("out of memory\nmore")) == "out of memory"
    assert kernels.told(ValueError()) == "ValueError"


def test_a_kernel_speeds_up_only_where_it_ran_and_the_quartiles_lie_apart():
    def rows(low, high, reason=""):
        return [
            kernels.Row(kernels.NAIVE, 64, 3.0, 2.0, 4.0),
            kernels.Row(kernels.XFORMERS, 64, 1.0, low, high, reason=reason),
        ]

    judged = [kernels.speeds_up(rows(*bounds), kernels.XFORMERS, 64) for bounds in ((0.5, 1.5), (0.5, 2.5), (5.0, 6.0))]
    assert judged == ["成立", "证据不足", "不成立"]
    assert kernels.speeds_up(rows(0.5, 1.5, "无"), kernels.XFORMERS, 64) == "证据不足"
    assert kernels.speeds_up(rows(0.5, 1.5), kernels.XFORMERS, 256) == "证据不足"


def test_a_whole_model_computes_its_attention_step_by_step_for_a_while(monkeypatch):
    torch.manual_seed(0)
    model, images = create_model("vit", **toy.TINY).eval(), torch.randn(2, 3, 32, 32)
    calls, naive = [], kernels.naive
    monkeypatch.setattr(kernels, "naive", lambda *given: calls.append(1) or naive(*given))
    with torch.no_grad():
        usual = model(images)
        torch.testing.assert_close(kernels.stepwise(model)(images), usual, atol=1e-5, rtol=1e-4)
        assert len(calls) == len(model.blocks) and torch.equal(model(images), usual)
    assert len(calls) == len(model.blocks)


def test_a_ratio_of_latencies_is_paired_by_rounds():
    drift = np.linspace(1, 9, 41)  # the machine slows down nine times, for both
    middle, low, high = latency.ratio(2.0 * drift, drift)
    assert (middle, low, high) == (2.0, 2.0, 2.0)
    noise = np.random.default_rng(0).normal(1, 0.1, (400, 25))
    covered = [low <= 1 <= high for _, low, high in (latency.ratio(row, np.ones(25)) for row in noise)]
    assert 0.92 < np.mean(covered) <= 0.99
    assert latency.ratio(np.ones(5), np.ones(5)) == (1.0, 0.0, np.inf)
    assert latency.told_ratio(np.ones(5), np.ones(5)) == "1.00 倍（轮数太少，没有区间）"
    assert latency.factor(np.ones(5), np.ones(5)) == "1.00"
    assert latency.factor(2.0 * drift, drift) == "2.00 [2.00, 2.00]"
    assert latency.drift((2.0 * drift, drift), (3.0 * drift, drift)) == 1.5


def test_latencies_are_told_without_exponents():
    assert latency.spread(np.array([0.9994, 1.25, 1.5])) == "1,250 [1,125, 1,375]"
    assert latency.spread(np.array([0.00123])) == "1.23 [1.23, 1.23]"
    assert [latency.three(value) for value in (6.4, 20, 0.067, 999.4, 999.6)] == [
        "6.40",
        "20.0",
        "0.0670",
        "999",
        "1,000",
    ]


def test_a_model_is_faster_only_beyond_its_interval():
    steady, noisy = np.ones(20), np.linspace(0.8, 1.25, 20)
    assert [latency.pace(base, steady) for base in (2 * steady, steady / 2, noisy)] == ["更快", "更慢", "分不出快慢"]
    assert latency.pace(2 * steady[:5], steady[:5]) == "分不出快慢"  # too few rounds for an interval
