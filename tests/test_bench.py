"""The benchmarks: the same work for everyone, honest clocks, a floor that follows from its definition."""

import argparse
import json
import time

import numpy as np
import pytest
import torch
from torch import nn
from toy import CPU, toy

from benchmarks import bench, datapath, memory, probe, roofline, short_run, speedrun
from benchmarks.peers import PEERS, build, original_as_written
from benchmarks.roofline import Ceilings, floor
from benchmarks.steps import AS_WRITTEN, inference, training_step
from benchmarks.timing import interleave, ratio
from vitlib import commands
from vitlib.data import read_image
from vitlib.engine import Trainer
from vitlib.errors import UserError
from vitlib.models import count, create_model


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_has_the_shape(name):
    with torch.device("meta"):
        model = build(name)
    ours = count(build("ours"))
    if name == "original":
        return
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == pytest.approx(ours.params, rel=0.01)
    assert count(model).flops == pytest.approx(ours.flops, rel=0.03)  # a class token is 1 token in 65


def test_a_missing_library_is_one_clear_sentence(monkeypatch):
    def absent():
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setitem(PEERS, "timm", absent)
    with pytest.raises(UserError, match=r"缺少对照库 timm.*\[bench\]"):
        build("timm")


def test_a_peer_that_is_not_installed_is_left_out_and_told_but_never_the_baseline(monkeypatch, capsys):
    def absent():
        raise ModuleNotFoundError("No module named 'x'", name="x")

    monkeypatch.setitem(PEERS, "vit-pytorch", absent)
    found, left_out = bench.available(PEERS)
    assert left_out == ["vit-pytorch"] and found == [name for name in PEERS if name != "vit-pytorch"]
    assert "vit-pytorch 不参加比较" in capsys.readouterr().err
    monkeypatch.setitem(PEERS, "timm", absent)
    with pytest.raises(UserError, match="缺少对照库"):
        bench.available(PEERS)
    with pytest.raises(UserError, match="没有叫 tim 的实现"):
        bench.available(["tim"])
    with pytest.raises(UserError, match="以 timm 为基准"):
        bench.available(["ours"])


def test_the_engines_step_makes_its_pictures_ready_every_time(tmp_path, monkeypatch):
    seen = []
    step = Trainer._pixels
    monkeypatch.setattr(Trainer, "_pixels", lambda job, draws, i: seen.append(i) or step(job, draws, i))
    work = bench._engine_step(toy(), 16, CPU, tmp_path)
    for _ in range(4):
        work()
    assert seen == [0, 1, 2, 0]


def test_the_probe_tells_what_a_step_costs():
    told = [*probe.lines(["cpu"], toy(size=32), CPU, 2)]
    assert len(told) == 1  # nothing is compiled on a processor
    name, mode, *numbers = told[0].split()
    assert (name, mode) == ("cpu", "eager")
    first, launched, done = (float(numbers[numbers.index(word) + 1]) for word in ("first", "launched", "done"))
    assert first >= 0 and 0 < launched <= done


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_the_work_is_real(mode, monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    monkeypatch.setitem(PEERS, "linear", lambda: model)
    before = model[1].weight.detach().clone()
    training_step("linear", mode, 4, CPU)()
    assert not torch.equal(model[1].weight, before)
    logits = inference("linear", mode, 4, CPU)()
    assert logits.shape == (4, 10) and not model.training
    assert logits.dtype == (torch.float32 if mode == "fp32" else torch.bfloat16)


def test_the_original_is_also_timed_as_it_was_written(monkeypatch):
    """Its dropout of 0.1 and plain Adam at 5e-4: the first step moves every weight that has a gradient by its rate."""
    small = {"d_model": 16, "num_heads": 2, "num_layers": 1, "ffn_hidden_channels": 16}
    model = create_model("original", **small)
    monkeypatch.setattr("benchmarks.peers.original_as_written", lambda: model)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    training_step("original", AS_WRITTEN, 4, CPU)()
    moved = max(float((value.detach() - weights[name]).abs().max()) for name, value in model.named_parameters())
    assert moved == pytest.approx(5e-4, rel=1e-3)
    assert any(isinstance(part, nn.Dropout) and part.p == 0.1 for part in original_as_written().modules())


def test_tasks_take_turns_and_every_time_is_kept():
    seen = []

    def sleep(name, seconds):
        seen.append(name)
        time.sleep(seconds)

    tasks = {"a": lambda: sleep("a", 0.001), "b": lambda: sleep("b", 0.02)}
    times = interleave(tasks, CPU, seconds=0.0, least=4, label="测试")
    assert seen[:2] == ["a", "b"]  # one round warms up
    rounds = {tuple(seen[i : i + 2]) for i in range(2, 10, 2)}
    assert len(seen) == 10 and rounds == {("a", "b"), ("b", "a")}
    assert [len(values) for values in times.values()] == [4, 4]
    assert times["b"].min() >= 0.02 > times["a"].min()


def test_a_ratio_compares_round_by_round():
    slow, fast = np.array([2.0, 4.0, 20.0]), np.array([1.0, 2.0, 5.0])
    assert ratio(slow, fast) == (2.0, 2.0, 3.0)
    assert ratio(slow, slow) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_the_floor_is_arithmetic_or_bytes_whichever_takes_longer(guard):
    layer = nn.Linear(64, 32, bias=False)
    x = torch.randn(8, 64)

    def step():
        with guard():
            nn.functional.gelu(layer(x))  # the activation counts for nothing

    flops, moved = 2 * 8 * 64 * 32, 4 * (8 * 64 + 64 * 32 + 8 * 32)
    assert floor(step, Ceilings({"float32": 1.0}, 1e30)) == (pytest.approx(flops), flops)
    assert floor(step, Ceilings({"float32": 1e30}, 1.0))[0] == pytest.approx(moved)


def test_ceilings_are_rates(monkeypatch):
    monkeypatch.setattr(roofline, "_best", lambda task, device, seconds: 2.0)
    found = roofline.ceilings(CPU)
    assert found.flops == {"float32": 4096.0**3, "bfloat16": 4096.0**3}
    assert found.bandwidth == 2**26 * 4


def test_the_data_path_reads_the_pictures_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(datapath, "BATCH", 8)
    data = toy()
    assert datapath._write_pictures(data, tmp_path, 20) == 20
    files = {int(path.stem): path for path in tmp_path.rglob("*.jpg")}
    assert {index: int(path.parent.name) for index, path in files.items()} == dict(
        enumerate(data.train.labels[:20].tolist())
    )
    for index, path in files.items():
        gap = read_image(path, 16).float() - data.train.images[index].float()
        assert gap.mean((1, 2)).abs().max() < 8  # JPEG blurs the noise and keeps each channel's brightness
    for pixels, labels in datapath._loader(str(tmp_path), 0):
        assert pixels.shape[1:] == (3, 32, 32) and len(pixels) == len(labels) and pixels.abs().max() <= 1


def test_three_data_paths_are_timed_in_turn(monkeypatch):
    monkeypatch.setattr(datapath, "BATCH", 8)
    rates = datapath.images_per_second(toy(), CPU, 0.0)
    assert set(rates) == {"original", "original, workers", "ours"}
    assert all(len(values) == 3 and min(values) > 0 for values in rates.values())


def test_the_bench_measures_every_cell_against_the_baseline(monkeypatch, capsys, tmp_path):
    tiny = {name: (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))) for name in ("ours", "timm")}
    monkeypatch.setattr(bench, "can_compile", lambda device: False)
    monkeypatch.setattr(bench, "SMALL", {"train": (4,), "infer": (1,)})
    monkeypatch.setattr(bench, "ceilings", lambda device: Ceilings({"float32": 1e9, "bfloat16": 2e9}, 1e9))
    monkeypatch.setattr(bench, "peak_bytes", lambda *_: 2**20)
    monkeypatch.setattr(bench, "images_per_second", lambda *_: {"original": [1.0], "ours": [50.0]})
    monkeypatch.setattr(bench, "compare", lambda *_: {"ours": {"seconds": 1.0}, "timm": {"seconds": 2.0}})
    for name, build_one in tiny.items():
        monkeypatch.setitem(PEERS, name, build_one)
    kept = []
    found = bench.run(
        toy(), CPU, full=False, seconds=0.0, models=("ours", "timm"), keep=lambda part: kept.append(len(part["cells"]))
    )
    assert kept == [5, 9] and found["left_out"] == []
    cells = {(row["work"], row["model"], row["mode"]): row for row in json.loads(json.dumps(found))["cells"]}
    assert set(cells) == {
        (work, model, mode) for work in ("train", "infer") for model in ("ours", "timm") for mode in ("fp32", "bf16")
    } | {("train", "engine", "bf16")}  # fmt: skip
    for row in cells.values():
        assert row["images_per_second"] == pytest.approx(row["batch"] / np.median(row["seconds"]), rel=1e-3)
        assert row["roofline"] > 0 and row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert cells["train", "timm", "fp32"]["ratio"] == 1.0
    bench.tell(found)
    assert "为原系统的 50.0 倍" in (told := capsys.readouterr().out) and "ours 1、timm 1" in told
    bench.tell(found | {"memory": {"ours": None, "timm": None}})
    assert "只在 Linux 或 CUDA 上测量" in capsys.readouterr().out


@pytest.mark.slow
def test_a_whole_run_of_each_side_and_its_memory_are_measured_in_processes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as a user may, whose path to the data is relative
    found = short_run.compare("synthetic", 256, 1)
    assert found.keys() == {"ours", "timm"}
    assert all(0 < side["accuracy"] < 1 and side["seconds"] > 0 for side in found.values())
    if memory.STATUS.exists():
        assert memory.peak_bytes("ours", "fp32", 2) > 2**20
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")  # neither Linux nor CUDA
    assert memory.peak_bytes("ours", "fp32", 2) is None


def test_a_speedrun_reports_every_seed_and_whether_the_mean_reaches_the_target(capsys):
    data = toy()
    found = speedrun.run(data, CPU, 2, {0.0: ("cpu", 1), 1.01: ("cpu", 1)})
    easy, hard = found["targets"]
    assert easy["reached"] and not hard["reached"] and len(easy["runs"]) == 2
    assert easy["accuracy"] == pytest.approx(np.mean([run["accuracy"] for run in easy["runs"]]))
    assert [run["accuracy"] for run in easy["runs"]] == [run["accuracy"] for run in hard["runs"]]
    assert easy["seconds"] > 0
    speedrun.tell(found)
    out = capsys.readouterr().out
    assert "目标 0.0 %" in out and "，达到" in out and "，未达到" in out


def test_a_speedrun_knows_its_targets():
    assert speedrun.plan(CPU) == speedrun.PLAN["cpu"]
    assert speedrun.plan(torch.device("cuda"), [0.9], epochs=3) == {0.9: ("fast", 3)}
    with pytest.raises(UserError, match=r"没有为目标 0.99 .*0.6、0.7"):
        speedrun.plan(CPU, [0.99])


@pytest.mark.parametrize("benchmark", ["bench", "speedrun"])
def test_without_the_checkout_the_command_says_where_its_code_is(benchmark, monkeypatch):
    monkeypatch.setattr("vitlib.paths.checkout", lambda: None)
    with pytest.raises(UserError, match="benchmarks/"):
        commands.measure(argparse.Namespace(benchmark=benchmark))
