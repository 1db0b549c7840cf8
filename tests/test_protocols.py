"""Who sees which images, and what pre-training hands on: study, refit, original, autoencoder."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toy import CPU, ORIGINAL, PLAIN, VIT, same, toy, trainer

from vitlib import evaluate
from vitlib.augment import EpochDraws
from vitlib.data import TestSet
from vitlib.engine import Trainer


@pytest.fixture(scope="module")
def data():
    return toy()


# --- who sees which images ------------------------------------------------------------------------


class Sealed(TestSet):
    """A test set that must not be looked at yet."""

    opened = False

    def __getattribute__(self, name):
        if name in ("images", "labels", "take", "counts") and not Sealed.opened:
            raise AssertionError(f"the test set's {name} were read before the end")
        return super().__getattribute__(name)


@pytest.fixture
def sealed(data, monkeypatch):
    """The data with its test set sealed until the last step is done."""
    finish = Trainer._finish

    def open_then_finish(job, failed):
        assert job.state.step == job.steps
        monkeypatch.setattr(Sealed, "opened", True)
        return finish(job, failed)

    monkeypatch.setattr(Trainer, "_finish", open_then_finish)
    return replace(data, test=Sealed(data.test.images, data.test.labels))


@pytest.mark.parametrize("protocol", ["study", "refit"])
def test_the_test_set_is_read_once_at_the_end(sealed, tmp_path, protocol):
    outcome = trainer(VIT.but(protocol=protocol), sealed, tmp_path).run()
    assert len(outcome.test_logits) == len(sealed.test)


def test_the_original_monitors_the_test_set(sealed, tmp_path):
    with pytest.raises(AssertionError, match="before the end"):
        trainer(ORIGINAL, sealed, tmp_path).run()


@pytest.mark.parametrize("recipe", [VIT, VIT.but(protocol="refit"), ORIGINAL], ids=lambda r: r.protocol)
def test_another_test_set_changes_no_weight(data, tmp_path, recipe):
    poisoned = replace(data, test=TestSet(255 - data.test.images, (data.test.labels + 1) % 3))
    (tmp_path / "poisoned").mkdir()
    clean = trainer(recipe, data, tmp_path).run()
    other = trainer(recipe, poisoned, tmp_path / "poisoned").run()
    assert same(clean.state, other.state)
    assert not torch.equal(clean.test_logits, other.test_logits)
    watched = {name for name in clean.history if clean.history[name] != other.history[name]}
    assert watched == ({"test_loss", "test_accuracy"} if recipe.protocol == "original" else set())


CURVES = {
    "study": {"val_loss", "val_accuracy"},
    "refit": set(),
    "original": {"test_loss", "test_accuracy"},
}


@pytest.mark.parametrize("protocol", CURVES)
def test_each_protocol_fits_and_watches_its_own_images(data, tmp_path, protocol):
    job = trainer(PLAIN.but(protocol=protocol), data, tmp_path)
    train, validation = data.split(seed=0)
    fit = train if protocol == "study" else data.train
    assert torch.equal(job.images, fit.images) and torch.equal(job.labels, fit.labels)
    assert job.class_counts == fit.counts(3)
    outcome = job.run()
    assert set(outcome.history) == {"epoch", "lr", "train_loss", "train_accuracy"} | CURVES[protocol]
    if protocol == "refit":
        return
    watched = validation if protocol == "study" else data.test
    job.model.load_state_dict(outcome.state)
    logits = evaluate.predict(job.model.eval(), watched.images, device=CPU)
    name = "val" if protocol == "study" else "test"
    accuracy = float((logits.argmax(1) == watched.labels).double().mean())
    assert outcome.history[f"{name}_accuracy"][-1] == accuracy
    loss = float(F.cross_entropy(logits, watched.labels))
    assert outcome.history[f"{name}_loss"][-1] == pytest.approx(loss, rel=1e-4)


# --- pre-training ---------------------------------------------------------------------------------

PRETRAIN = ORIGINAL.but(name="toy-pretrain", objective="autoencode", weight_decay=0.0, ema=0.0, epochs=6)


def test_the_autoencoder_learns_to_reconstruct_and_has_no_accuracy(data, tmp_path):
    outcome = trainer(PRETRAIN, data, tmp_path).run()
    losses = outcome.history["train_loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert set(outcome.history) == {"epoch", "lr", "train_loss"} and outcome.test_logits is None


def test_fine_tuning_starts_from_exactly_the_encoder(data, tmp_path):
    encoder = trainer(PRETRAIN, data, tmp_path).run().state
    (folder := tmp_path / "fine").mkdir()
    fresh = trainer(ORIGINAL, data, folder).model.state_dict()
    fresh = {name: tensor.clone() for name, tensor in fresh.items()}
    tuned = trainer(ORIGINAL, data, folder, start=encoder).model.state_dict()
    for name in tuned:
        expected = fresh[name] if name.startswith("head.") else encoder[name]
        assert torch.equal(tuned[name], expected), name
    assert not same(fresh, {name: tensor.clone() for name, tensor in tuned.items()})


def test_encoder_and_head_have_their_own_rates(data, tmp_path, in_float32):
    recipe = ORIGINAL.but(encoder_lr_scale=0.01, weight_decay=0.0, ema=0.0, lr=1e-3)
    job = trainer(recipe, data, tmp_path)
    before = {name: tensor.clone() for name, tensor in job.model.named_parameters()}
    job._train_step(EpochDraws(0, 0, data.train.labels, job.steps_per_epoch), 0, 0)
    # Adam's first step is the rate itself, wherever the gradient is not tiny
    for name, tensor in job.model.named_parameters():
        largest = float((tensor - before[name]).detach().abs().max())
        assert largest == pytest.approx(1e-3 if name.startswith("head.") else 1e-5, rel=0.02), name


def test_a_rate_of_0_freezes_the_encoder(data, tmp_path):
    job = trainer(PLAIN.but(encoder_lr_scale=0.0, weight_decay=0.0), data, tmp_path)
    before = {name: tensor.clone() for name, tensor in job.model.named_parameters()}
    state = job.run().state
    changed = {name for name in before if not torch.equal(before[name], state[name])}
    assert changed == {"head.weight", "head.bias"}
