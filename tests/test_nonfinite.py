"""Numbers that are not finite: found, located, survived or drawn as a flat curve."""

import math

import pytest
import torch
from toy import ORIGINAL, PLAIN, same, toy, trainer

from vitlib.augment import EpochDraws


@pytest.fixture(scope="module")
def data():
    return toy()


# four tokens and much noise: soon a row of attention logits is -inf throughout, as the original's at patch 16
FRAGILE = ORIGINAL.but(name="toy-fragile", model_args={"patch_size": 8, "dropout": 0.3}, ema=0.0, batch_size=2)


def trailing(job):
    """Run a job; return its outcome, and its parameters as they were before each step."""
    before = []
    step = job._train_step

    def spy(*args):
        before.append({name: tensor.clone() for name, tensor in job.model.named_parameters()})
        step(*args)

    job._train_step = spy
    return job.run(), before


def test_the_originals_nan_stops_the_run_and_is_located(data, tmp_path):
    outcome, before = trailing(trainer(FRAGILE, data, tmp_path))
    failed = outcome.failed
    assert failed["step"] == len(before) - 1 > 0
    assert (failed["epoch"], failed["batch"]) == divmod(failed["step"], 24)
    assert failed["module"] == "blocks.0.attention" and "NaN" in failed["message"]
    for word in (f"第 {failed['step'] + 1} 步", f"第 {failed['batch'] + 1} 批", "OriginalAttention"):
        assert word in failed["message"]
    order = EpochDraws(0, failed["epoch"], torch.zeros(48, dtype=torch.long), 24).order.tolist()
    assert failed["images"] == order[2 * failed["batch"] : 2 * failed["batch"] + 2]
    parameters = {name: outcome.state[name] for name in before[-1]}
    assert same(parameters, before[-1])  # as before the bad step


def test_told_to_go_on_the_run_draws_the_flat_curve(data, tmp_path):
    outcome = trainer(FRAGILE.but(on_nonfinite="continue"), data, tmp_path).run()
    assert outcome.failed is None and len(outcome.history["test_accuracy"]) == 4
    assert math.isnan(outcome.history["train_loss"][-1])
    assert outcome.history["test_accuracy"][-1] == pytest.approx(1 / 3)  # always class 0
    assert (outcome.test_logits.argmax(1) == 0).all()


def test_the_correction_removes_the_nan(data, tmp_path):
    outcome = trainer(FRAGILE.but(model_args={"attention_noise": "dropout"}), data, tmp_path).run()
    assert outcome.failed is None and all(map(math.isfinite, outcome.history["train_loss"]))


@pytest.mark.parametrize("step", [3, 23])  # inside an epoch; the very last step
def test_a_poisoned_layer_is_named_and_is_found_again_after_a_restart(data, tmp_path, monkeypatch, step):
    monkeypatch.setenv("CIFAR_VIT_CHECKPOINT_SECONDS", "0")
    recipe = PLAIN.but(protocol="refit", epochs=4)  # six steps an epoch
    found = []
    for _ in range(2):
        job = trainer(recipe, data, tmp_path)
        job.model.blocks[0].ffn.fc1.register_forward_hook(
            lambda m, i, out, job=job: out * math.inf if job.state.step in (step, step + 1) else out
        )
        outcome = job.run()
        found.append(outcome.failed)
        assert all(torch.isfinite(tensor).all() for tensor in outcome.state.values())
    assert found[0] == found[1]
    assert (found[0]["step"], found[0]["module"]) == (step, "blocks.0.ffn.fc1")


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_broken_gradient_stops_the_run_before_it_breaks_the_weights(data, tmp_path, clip):
    job = trainer(PLAIN.but(clip_norm=clip), data, tmp_path)
    job.model.head.weight.register_hook(lambda grad: grad * (math.nan if job.state.step == 4 else 1))
    outcome, before = trailing(job)
    assert (outcome.failed["step"], outcome.failed["module"]) == (4, "gradient")
    assert same({name: outcome.state[name] for name in before[-1]}, before[-1])
