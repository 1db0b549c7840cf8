"""The run store: trained once, published by a rename, immutable, and safe when the disk is full."""

import builtins
import errno
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from toy import ORIGINAL, PLAIN, VIT, toy, trainer

from vitlib import checkpoint, recipe, record, store
from vitlib.engine import Trainer
from vitlib.errors import UserError
from vitlib.exchange import export, import_runs
from vitlib.record import is_stale
from vitlib.state import OutOfTime
from vitlib.store import Store

FRAGILE = ORIGINAL.but(name="toy-fragile", model_args={"patch_size": 8, "dropout": 0.3}, batch_size=2)


@pytest.fixture
def trainings(monkeypatch):
    """Count how often training really runs."""
    count = []
    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda job: count.append(job.recipe.name) or run(job))
    return count


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- once, and for good ---------------------------------------------------------------------------


def test_a_run_is_trained_once_and_found_by_whatever_spelling(shelf, data, trainings):
    first = shelf.get(PLAIN, 0, data, show=False)
    renamed = PLAIN.but(name="other", augment={"crop": 0}, loss_args={"label_smoothing": 0})
    assert shelf.get(renamed, 0, data, show=False).key == first.key
    assert Store(shelf.root, shelf.published).find(PLAIN, 0, data).record == first.record
    assert trainings == ["toy-plain"]
    shelf.get(PLAIN, 1, data, show=False)
    shelf.get(PLAIN.but(epochs=1), 0, data, show=False)
    shelf.get(PLAIN, 0, toy(seed=1), show=False)
    assert len(trainings) == 4 and len(shelf.all()) == 4


def test_a_published_run_holds_what_it_should_and_nothing_half_done(shelf, data):
    run = shelf.get(PLAIN, 0, data, show=False)
    assert files(shelf.root) == {f"locks/{run.key}"} | {
        f"{run.key}/{name}" for name in ("record.json", "weights.safetensors", "log.jsonl")
    }
    assert not shelf.published.exists()
    log = [json.loads(line) for line in (run.path.parent / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == [1, 2, 3, 4]
    np.testing.assert_allclose([row["val_loss"] for row in log], run.history["val_loss"], atol=1e-5)


def test_a_run_appears_by_one_rename(shelf, data, monkeypatch):
    seen = []
    rename = os.replace

    def spy(source, target):
        if str(target).endswith(PLAIN.key(0, data.fingerprint)):
            seen.append({path.name for path in source.iterdir() if not path.name.startswith(".")})
            assert not target.exists()
        rename(source, target)

    monkeypatch.setattr(os, "replace", spy)
    monkeypatch.setenv("CIFAR_VIT_CHECKPOINT_SECONDS", "0")
    shelf.get(PLAIN, 0, data, show=False)
    # complete before it is there; and the checkpoint, until it is
    assert seen == [{"record.json", "weights.safetensors", "log.jsonl", "checkpoint.safetensors"}]
    assert not [*shelf.root.rglob("checkpoint*")]


def test_a_run_under_way_is_not_a_run(shelf, data):
    key = shelf.get(PLAIN, 0, data, show=False).key
    os.rename(shelf.root / key, shelf.root / f"{key}.work")  # as if killed just before the rename
    assert shelf.find(PLAIN, 0, data) is None and shelf.all() == []
    assert shelf.get(PLAIN, 0, data, show=False).key == key and len(shelf.all()) == 1


def test_a_later_run_never_changes_an_earlier_one(shelf, data):
    run = shelf.get(PLAIN, 0, data, show=False)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.path.parent.iterdir()}
    shelf.get(PLAIN, 0, data, show=False, weights=True)
    shelf.get(PLAIN, 1, data, show=False)
    shelf.publish(run)
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.path.parent.iterdir()}


def test_files_torn_by_a_kill_are_swept_up(shelf, data):
    work = shelf.root / f"{PLAIN.key(0, data.fingerprint)}.work"
    work.mkdir(parents=True)
    for name in (".checkpoint.safetensors.1.partial", ".tmpAbC"):
        (work / name).write_bytes(b"x" * 100)
    run = shelf.get(PLAIN, 0, data, show=False)
    assert {path.name for path in run.path.parent.iterdir()} == {
        "record.json", "weights.safetensors", "log.jsonl",
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["garbage", "cut off", "another recipe's", "no step"])
def test_a_damaged_checkpoint_is_one_clear_sentence(shelf, data, damage):
    recipe = VIT if damage != "another recipe's" else VIT.but(model_args={"d_model": 8})
    with pytest.raises(OutOfTime):
        shelf.get(recipe, 0, data, deadline=0.0, show=False)
    work = shelf.root / f"{VIT.key(0, data.fingerprint)}.work"
    (shelf.root / f"{recipe.key(0, data.fingerprint)}.work").rename(work)
    path = work / "checkpoint.safetensors"
    if damage == "garbage":
        path.write_bytes(b"garbage")
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no step":
        checkpoint.save(path, checkpoint.load(path)[0], {})
    with pytest.raises(UserError, match=r"检查点 .*checkpoint.safetensors .*请删去它"):
        shelf.get(VIT, 0, data, show=False)
    path.unlink()
    assert shelf.get(VIT, 0, data, show=False).failed is None


def test_more_classes_than_a_record_can_name_are_refused_before_training(shelf, trainings):
    with pytest.raises(UserError, match="257 个类别"):
        shelf.get(PLAIN, 0, toy(train=600, test=300, size=8, classes=257), show=False)
    assert not trainings


RACE = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from toy import VIT, toy
from vitlib.engine import Trainer
from vitlib.store import Store
import torch._dynamo  # what the optimiser imports at its first step: paid once, before the fork

root, run = Path({root!r}), Trainer.run
Trainer.run = lambda job: print("trained", flush=True) or time.sleep(1) or run(job)
children = []
for _ in range(2):
    if not (pid := os.fork()):
        found = Store(root / "runs", root / "published").get(VIT, 0, toy(), show=False)
        print(found.key, found.accuracy, flush=True)
        os._exit(0)
    children.append(pid)
sys.exit(max(os.waitpid(pid, 0)[1] for pid in children))
"""


@pytest.mark.skipif(os.name == "nt", reason="fork is POSIX's")
def test_two_processes_at_once_train_once(tmp_path):
    script = RACE.format(tests=os.path.dirname(__file__), root=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *answers = done.stdout.splitlines()
    assert first == "trained" and len(answers) == 2 and answers[0] == answers[1]
    assert done.stderr.count("等它做完") == 1  # the second says what it waits for


def test_waiting_for_another_process_ends_at_the_deadline(shelf, data, trainings):
    with shelf.lock(VIT.key(0, data.fingerprint)), pytest.raises(OutOfTime):
        shelf.get(VIT, 0, data, deadline=time.monotonic() + 0.3, show=False)
    assert not trainings
    assert shelf.get(VIT, 0, data, show=False).failed is None


def test_a_run_made_again_for_its_weights_replaces_its_record_at_once(shelf, data):
    run = shelf.get(PLAIN, 0, data, show=False)
    run.weights_path().unlink()
    (shelf.root / f".{run.key}.old").mkdir()  # what a kill left
    again = shelf.get(PLAIN, 0, data, show=False, weights=True)
    assert again.key == run.key and again.weights_path()
    assert not [path for path in shelf.root.iterdir() if path.name.startswith(".")]


# --- what else a run may come to ------------------------------------------------------------------


def test_a_failed_run_is_recorded_as_failed(shelf, data, trainings):
    run = shelf.get(FRAGILE, 0, data, show=False)
    assert run.failed["module"] == "blocks.0.attention" and run.failed["step"] >= 0
    assert run.summary["failed"] == run.failed["message"] and not run.has_weights
    assert shelf.get(FRAGILE, 0, data, show=False, weights=True).failed == run.failed
    assert len(trainings) == 1  # a failure is a result: it is not tried again
    with pytest.raises(UserError, match="没有训练成功"):
        run.load_model()


def test_a_run_cannot_start_from_a_failed_one(shelf, data):
    with pytest.raises(UserError, match=r"toy-fragile.*没有训练成功"):
        shelf.get(ORIGINAL.but(init_from=FRAGILE), 0, data, show=False)


def test_pre_training_is_shared_and_its_encoder_is_where_tuning_starts(shelf, data, trainings):
    pretrain = ORIGINAL.but(name="pre", objective="autoencode", ema=0.0)
    frozen = ORIGINAL.but(name="tuned", init_from=pretrain, encoder_lr_scale=0.0, weight_decay=0.0, ema=0.0)
    tuned = shelf.get(frozen, 0, data, show=False)
    shelf.get(frozen.but(name="longer", epochs=5), 0, data, show=False)
    assert trainings == ["pre", "tuned", "longer"]
    start = shelf.find(pretrain, 0, data).load_state()
    parameters = [n for n, _ in tuned.load_model().named_parameters() if not n.startswith("head")]
    assert parameters and all(torch.equal(tuned.load_state()[name], start[name]) for name in parameters)


def test_large_weights_are_not_kept_and_are_made_again_when_asked_for(shelf, data, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "KEEP_WEIGHTS", 100)
        run = shelf.get(PLAIN, 0, data, show=False)
        assert not run.has_weights
        with pytest.raises(UserError, match=r"没有权重.*weights=True"):
            run.load_model()
        again = shelf.get(PLAIN, 0, data, show=False, weights=True)
    assert again.has_weights and np.array_equal(again.confidence, run.confidence)


def test_damaged_published_weights_are_named(shelf, data, tmp_path, monkeypatch):
    (tmp_path / "best.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    monkeypatch.setattr("vitlib.weights.weights_dir", lambda: tmp_path)
    run = shelf.get(PLAIN, 0, data, show=False)
    (run.path.parent / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"best\.safetensors 不是完好的"):
        run.load_state()


def test_an_import_waits_for_a_training_of_the_same_run(shelf, data, tmp_path, monkeypatch):
    other = Store(tmp_path / "other", tmp_path / "published")
    other.get(PLAIN, 0, data, show=False)
    key = PLAIN.key(0, data.fingerprint)
    export(other, [key], tmp_path / "out")
    theirs = (other.root / key / "weights.safetensors").read_bytes()
    with shelf.lock(key):
        waiting = threading.Thread(target=import_runs, args=(shelf, tmp_path / "out", False))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not (shelf.root / key).exists()
    waiting.join(30)
    assert (shelf.root / key / "weights.safetensors").read_bytes() == theirs


def test_a_record_of_older_numerics_is_stale_and_is_trained_anew(shelf, data, monkeypatch, trainings):
    run = shelf.get(PLAIN, 0, data, show=False)
    shelf.publish(run)
    assert not is_stale(run)
    raised = recipe.NUMERICS + 1
    monkeypatch.setattr(record, "NUMERICS", raised)
    monkeypatch.setattr(store, "NUMERICS", raised)
    monkeypatch.setattr(recipe.Recipe.key, "__defaults__", (raised,))
    old = shelf.all()
    assert [is_stale(run) for run in old] == [True]  # still readable
    assert shelf.find(PLAIN, 0, data) is None
    new = shelf.get(PLAIN, 0, data, show=False)
    assert new.key != run.key and not is_stale(new) and len(trainings) == 2


def test_published_records_are_runs_too(shelf, data, tmp_path, trainings):
    run = shelf.get(PLAIN, 0, data, show=False)
    path = shelf.publish(run)
    assert path.name == f"toy-plain-s0-{run.key}.json" and path.stat().st_size <= 32 * 1024
    elsewhere = Store(tmp_path / "elsewhere", shelf.published)
    found = elsewhere.get(PLAIN, 0, data, show=False)
    assert found.published and found.record == run.record and not found.has_weights
    assert shelf.find(PLAIN, 0, data).published
    assert [run.published for run in shelf.all()] == [True] and len(elsewhere.all()) == 1
    assert len(trainings) == 1


# --- a full disk ----------------------------------------------------------------------------------


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("culprit", ["save_file", "fsync"])
def test_without_room_for_a_checkpoint_the_run_goes_on(data, tmp_path, monkeypatch, capsys, culprit):
    monkeypatch.setenv("CIFAR_VIT_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(*((checkpoint, "save_file") if culprit == "save_file" else (os, "fsync")), no_space)
    outcome = trainer(PLAIN, data, tmp_path).run()
    assert outcome.failed is None and len(outcome.history["train_loss"]) == 4
    assert "检查点没有存下" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl"}


def test_without_room_for_the_log_the_run_goes_on(data, tmp_path, monkeypatch, capsys):
    open_file = builtins.open

    def full(path, *args, **kwargs):
        return no_space() if str(path).endswith("log.jsonl") else open_file(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    assert trainer(PLAIN, data, tmp_path).run().failed is None
    assert "日志没有写下" in capsys.readouterr().err


def test_without_room_for_the_record_nothing_half_written_stays(shelf, data, monkeypatch, trainings):
    monkeypatch.setenv("CIFAR_VIT_CHECKPOINT_SECONDS", "0")
    write = checkpoint.write_atomic

    def full(path, content):
        if path.name != "record.json":
            return write(path, content)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_space)
            return write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    with pytest.raises(UserError, match=r"磁盘空间不足.*腾出空间"):
        shelf.get(PLAIN, 0, data, show=False)
    key = PLAIN.key(0, data.fingerprint)
    assert shelf.find(PLAIN, 0, data) is None and shelf.all() == []
    assert not (shelf.root / key).exists()
    assert not [*shelf.root.rglob("*record.json*")]
    assert (shelf.root / f"{key}.work" / "checkpoint.safetensors").exists()
    monkeypatch.setattr(checkpoint, "write_atomic", write)  # room again: no step is trained twice
    steps = []
    monkeypatch.setattr(Trainer, "_train_step", lambda *args: steps.append(args))
    assert shelf.get(PLAIN, 0, data, show=False).accuracy == 1.0 and not steps


def test_a_store_that_cannot_be_made_is_one_clear_sentence(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="写不进"):
        Store(tmp_path / "file" / "runs", tmp_path).get(PLAIN, 0, data, show=False)
