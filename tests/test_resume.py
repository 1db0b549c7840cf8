"""Exact resumption: processes are killed (SIGKILL, at any moment), and what they leave is continued.

Run as a script, this file is the nursery: it imports PyTorch once and then forks the processes to be killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toy import ORIGINAL, VIT, same, toy

from vitlib.recipe import Recipe
from vitlib.store import Store

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fork and SIGKILL are POSIX's")

SEED = 3
PRETRAIN = ORIGINAL.but(name="toy-pretrain", objective="autoencode", weight_decay=0.0, ema=0.0, epochs=2)
RECIPES = {
    "vit": VIT,  # 5 steps an epoch, 4 epochs
    "muon": VIT.but(name="toy-muon", optimizer="muon", epochs=3),
    "original": ORIGINAL.but(init_from=PRETRAIN, epochs=3),  # 6 steps an epoch, after 2 epochs of pre-training
}


def checkpointed_step(work: Path) -> int:
    """Return the step of the checkpoint in a run's folder, -1 where there is none.

    By one open file: safetensors opens it twice, between which the run may have replaced it.
    """
    try:
        with open(work / "checkpoint.safetensors", "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except FileNotFoundError:
        return -1
    return json.loads(header["__metadata__"]["story"])["step"]


def wait_and_kill(pid: int, work: Path, step: int, delay: float) -> int | None:
    """Kill a process a moment after its checkpoint reached ``step``; None when it ended before that."""
    while checkpointed_step(work) < step:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return None
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return checkpointed_step(work) if os.WIFSIGNALED(status) else None


def nurse(root: Path, recipe: Recipe, times: int) -> list[tuple[str, int]]:
    """Train a recipe whole and, in another store, in processes killed ``times`` times; return where they died."""
    data, chance = toy(), random.Random(times)

    def train(store: Path) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            Store(store, root / "published").get(recipe, SEED, data, show=False)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)

    whole = train(root / "whole")
    assert os.waitpid(whole, 0)[1] == 0
    deaths = []
    for part in filter(None, (recipe.init_from, recipe)):
        work = root / "killed" / f"{part.key(SEED, data.fingerprint)}.work"
        last = len(data.split(seed=0)[0] if part.protocol == "study" else data.train) // 8 * part.epochs
        for step in sorted(chance.sample(range(-1, last - 1), times)):
            died = wait_and_kill(train(root / "killed"), work, step, chance.random() * 0.02)
            deaths += [] if died is None else [(part.name, died)]
    assert os.waitpid(train(root / "killed"), 0)[1] == 0
    return deaths


def run_nursery(root, times):
    environment = os.environ | {"CIFAR_VIT_CHECKPOINT_SECONDS": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(root), str(times)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def without_clock(run):
    return {name: value for name, value in run.record.items() if name not in ("timing", "machine", "source")}


def check_equal(one, other):
    """The runs are the same bit for bit: weights, curves and answers."""
    assert same(one.load_state(), other.load_state())
    assert without_clock(one) == without_clock(other)
    assert one.history.keys() == other.history.keys()
    assert all(np.array_equal(one.history[name], other.history[name]) for name in one.history)
    logs = [(run.path.parent / "log.jsonl").read_text() for run in (one, other)]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == one.epochs
    for run in (one, other):
        names = {path.name for path in run.path.parent.iterdir()}
        assert names == {"record.json", "weights.safetensors", "log.jsonl"}


def check_survival(root, times):
    deaths = run_nursery(root, times)
    data, stores = toy(), [Store(root / part, root / "published") for part in ("whole", "killed")]
    inside = 0
    for recipe, per_epoch in ((RECIPES["vit"], 5), (RECIPES["muon"], 5), (PRETRAIN, 6), (RECIPES["original"], 6)):
        check_equal(*(store.find(recipe, SEED, data) for store in stores))
        steps = [step for died, step in deaths if died == recipe.name]
        assert steps, deaths
        inside += sum(step > 0 and step % per_epoch > 0 for step in steps)
    assert inside >= times, deaths  # killed inside an epoch, of 4 x times
    assert not [*(root / "killed").glob("*.work")]


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    check_survival(tmp_path, times=3)


@pytest.mark.slow
def test_runs_killed_ten_times_end_as_if_nothing_had_happened(tmp_path):
    check_survival(tmp_path, times=10)


def train_command(data, runs, threads, *more):
    command = [sys.executable, "-m", "vitlib", "train", "cpu", "--data", str(data), "--epochs", "2", *more]
    environment = os.environ | {
        "CIFAR_VIT_CHECKPOINT_SECONDS": "0",
        "CIFAR_VIT_RUNS": str(runs),
        "CIFAR_VIT_DEVICE": "cpu",
        "OMP_NUM_THREADS": str(threads),
    }
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_the_killed_command_goes_on_when_it_is_given_again(tmp_path):
    from PIL import Image

    data = toy(train=260, test=30, size=32)
    for part, images in (("train", data.train), ("test", data.test)):
        for i, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            folder = tmp_path / "data" / part / data.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    whole = train_command(tmp_path / "data", tmp_path / "whole", 2, "--json")
    out, error = whole.communicate(timeout=600)
    assert whole.returncode == 0, error.decode()
    key = json.loads(out)["key"]
    chance, deaths = random.Random(0), []
    for step in (1, 2):  # 2 steps an epoch, 2 epochs
        process = train_command(tmp_path / "data", tmp_path / "killed", 2)
        work = tmp_path / "killed" / f"{key}.work"
        deaths.append(wait_and_kill(process.pid, work, step, chance.random() * 0.5))
    assert None not in deaths and deaths[0] >= 1
    last = train_command(tmp_path / "data", tmp_path / "killed", 2, "--json")
    out, error = last.communicate(timeout=600)
    assert last.returncode == 0, error.decode()
    assert json.loads(out)["key"] == key
    runs = [Store(tmp_path / part, tmp_path / "published").all() for part in ("whole", "killed")]
    check_equal(runs[0][0], runs[1][0])


if __name__ == "__main__":
    import torch._dynamo  # noqa: F401  the optimiser imports it at its first step: here it is paid once

    root, times = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps([death for recipe in RECIPES.values() for death in nurse(root, recipe, times)]))
