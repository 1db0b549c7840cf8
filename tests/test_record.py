"""Records and weights files: what they say, how small they are, and how damage is told."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toy import CPU, ORIGINAL, PLAIN, VIT, same, toy

from vitlib import checkpoint, evaluate, store, use, weights
from vitlib.data import TestSet, TrainSet
from vitlib.device import describe
from vitlib.errors import UserError
from vitlib.record import pack_bytes, pack_curve, read_record, unpack_bytes, unpack_curve
from vitlib.state import Outcome
from vitlib.store import Store, make_record


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return Store(tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("pub")).get(PLAIN, 0, data, show=False)


# --- what a record says ---------------------------------------------------------------------------


def test_the_record_is_the_run(shelf, data, in_float32):
    run = shelf.get(VIT, 5, data, show=False)
    model = run.load_model()
    assert not model.training
    logits = evaluate.predict(model, data.test.images, device=CPU)
    assert run.accuracy == float((logits.argmax(1) == data.test.labels).double().mean())
    assert run.accuracy == run.correct.mean()
    assert np.array_equal(run.predicted, logits.argmax(1).numpy())
    np.testing.assert_allclose(run.confidence, logits.softmax(1).amax(1), atol=1 / 500)
    assert np.array_equal(run.labels, data.test.labels.numpy())
    assert (run.name, run.seed, run.epochs, run.failed, run.published) == ("toy-vit", 5, 4, None, False)
    assert run.recipe.spec() == VIT.spec() and run.key == VIT.key(5, data.fingerprint)
    assert run.params == sum(parameter.numel() for parameter in model.parameters())
    assert run.flops > 2 * 16 * 48 * 16  # the patch embedding alone
    fitted = len(data.split(seed=0)[0])
    assert (run.data["train_images"], run.data["test_images"]) == (fitted, len(data.test))
    assert run.data["class_counts"] == [16, 16, 16] and run.data["provenance"] == "玩具数据"
    assert {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"} == {*run.history}
    assert run.history["epoch"].tolist() == [1, 2, 3, 4]
    assert run.train_seconds > 0
    assert run.machine["torch"] == torch.__version__ and run.machine["threads"] >= 1
    summary = run.summary
    assert {"recipe", "seed", "data", "accuracy", "params", "flops", "epochs", "device", "published"} <= {*summary}
    assert json.loads(json.dumps(summary)) == summary


def test_a_weights_file_works_by_itself(shelf, data, tmp_path):
    run = shelf.get(PLAIN, 0, data, show=False)
    trained = weights.load_trained(str(run.weights_path()))
    assert same(trained.model.state_dict(), run.load_state())
    assert trained.class_names == data.class_names and trained.image_size == 16
    weights.save_weights(tmp_path / "half.safetensors", run.load_state(), run.record, half=True)
    stored = load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    half = weights.load_trained(str(tmp_path / "half.safetensors"))
    assert half.story["accuracy"] == run.accuracy
    for name, tensor in half.model.state_dict().items():
        torch.testing.assert_close(tensor, run.load_state()[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("fault", ["no story", "another shape", "another model", "a tensor less"])
def test_weights_that_fit_no_model_are_one_clear_sentence(finished, tmp_path, fault):
    tensors, story = checkpoint.load(finished.weights_path())
    if fault == "no story":
        story = {}
    elif fault == "another shape":
        story["recipe"]["model_args"]["d_model"] = 8
    elif fault == "another model":
        story["recipe"]["model"] = "original"
    else:
        del tensors["head.bias"]
    checkpoint.save(tmp_path / "w.safetensors", tensors, story)
    with pytest.raises(UserError, match=r"w\.safetensors 不是本项目写出的权重文件") as error:
        weights.load_trained(str(tmp_path / "w.safetensors"))
    assert "\n" not in str(error.value)


def test_an_autoencoder_has_no_accuracy(shelf, data):
    run = shelf.get(ORIGINAL.but(name="pre", objective="autoencode"), 0, data, show=False)
    assert np.isnan(run.accuracy) and run.summary["accuracy"] is None and len(run.predicted) == 0
    assert len(run.history["train_loss"]) == 4


def test_weights_of_a_pre_training_are_no_classifier(shelf, data, tmp_path):
    run = shelf.get(ORIGINAL.but(name="pre", objective="autoencode"), 0, data, show=False)
    weights.save_weights(tmp_path / "pre.safetensors", run.load_state(), run.record)
    with pytest.raises(UserError, match=r"pre\.safetensors 是预训练（autoencode）的权重，还不会分类"):
        weights.load_trained(str(tmp_path / "pre.safetensors"))


def test_answers_are_the_same_every_time_also_of_a_model_that_is_noisy_in_evaluation(shelf, data, tmp_path):
    run = shelf.get(ORIGINAL, 0, data, show=False)
    trained = weights.load_trained(str(run.weights_path()))
    Image.fromarray(data.test.images[0].permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    (first, _), (again, _) = (use.predict_files(trained, [tmp_path / "one.png"]) for _ in range(2))
    assert first == again and sum(first[0]["probabilities"].values()) == pytest.approx(1)
    assert use.evaluate_images(trained, data.test) == use.evaluate_images(trained, data.test)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    use.evaluate_images(trained, data.test)
    assert torch.equal(torch.rand(3), expected)  # the caller's random numbers are his own


def test_a_model_that_answers_nan_has_no_confidence_and_json_takes_it(shelf, data, tmp_path):
    trained = weights.load_trained(str(shelf.get(PLAIN, 0, data, show=False).weights_path()))
    torch.nn.init.constant_(trained.model.head.bias, float("nan"))
    Image.fromarray(data.test.images[0].permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    ((row,), _) = use.predict_files(trained, [tmp_path / "one.png"])
    assert row["confidence"] == 0 and row["class"] == data.class_names[0]  # as record.answers has it
    json.dumps(row, allow_nan=False)


def test_the_originals_own_measure_is_the_mean_of_the_last_tenth(shelf, data):
    run = shelf.get(ORIGINAL.but(epochs=20), 0, data, show=False)
    assert run.monitored_accuracy == pytest.approx(run.history["test_accuracy"][-2:].mean())
    assert np.isnan(shelf.get(PLAIN, 0, data, show=False).monitored_accuracy)


# --- size -----------------------------------------------------------------------------------------


def long_outcome(epochs, images):
    random = np.random.RandomState(0)
    curve = 2 * np.exp(-np.arange(epochs) / 100) + 0.05 * random.randn(epochs)
    columns = {name: list(curve + i) for i, name in enumerate(("train_loss", "test_loss"))}
    columns |= {name: list(random.rand(epochs)) for name in ("train_accuracy", "test_accuracy")}
    logits = torch.from_numpy(2 * random.randn(images, 10)).float()
    history = {"epoch": [*range(1, epochs + 1)], "lr": [5e-4] * epochs, **columns}
    return Outcome(history, {}, logits, None, {"train_seconds": 1.0, "images_per_second": 1.0}, [describe(CPU)])


def wide(images):
    pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8).expand(images, -1, -1, -1)
    labels = torch.arange(images) % 10
    return replace(
        toy(classes=10), train=TrainSet(pixels[:20], labels[:20]), test=TestSet(pixels, labels.sort().values)
    )


@pytest.mark.parametrize(("epochs", "images"), [(1001, 4870), (200, 10_000)])
def test_a_record_of_the_longest_runs_fits_in_32_kib(epochs, images, tmp_path):
    """Worst cases: curves of pure noise, guesses and confidences at random."""
    data, outcome = wide(images), long_outcome(epochs, images)
    content = json.dumps(make_record(ORIGINAL, 0, data, outcome), ensure_ascii=False).encode()
    assert len(content) <= 32 * 1024
    (tmp_path / "record.json").write_bytes(content)
    run = read_record(tmp_path / "record.json", published=False)
    for name, values in outcome.history.items():
        if name != "lr":
            np.testing.assert_allclose(run.history[name], values, atol=6e-6)
    assert np.array_equal(run.predicted, outcome.test_logits.argmax(1).numpy())


def test_a_record_too_large_is_kept_here_but_not_published(shelf, data, monkeypatch):
    run = shelf.get(PLAIN, 0, data, show=False)
    monkeypatch.setattr(store, "LIMIT", 500)
    with pytest.raises(UserError, match=r"toy-plain.*上限 500"):
        shelf.publish(run)
    assert not shelf.published.exists()


def test_curves_and_bytes_survive_packing_also_where_not_finite():
    curve = [2.30258, 0.0, 19_999.99999, float("nan"), float("inf"), -1.5, 1e30]
    back = unpack_curve(pack_curve(curve))
    np.testing.assert_allclose(back[[0, 1, 2, 5]], [2.30258, 0.0, 19_999.99999, -1.5], atol=1e-9)
    assert np.isnan(back[[3, 4, 6]]).all()
    assert len(unpack_curve(pack_curve([]))) == 0
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(unpack_bytes(pack_bytes(values)), values)


# --- damage -----------------------------------------------------------------


def broken(change):
    """Return the text of a record after ``change`` on its content."""

    def damage(text):
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return damage


DAMAGE = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[1, 2]",
    "null": lambda text: "null",
    "no labels": broken(lambda c: c.pop("labels")),
    "labels not text": broken(lambda c: c.update(labels=7)),
    "labels not base 85": broken(lambda c: c.update(labels="~~~ ~~~")),
    "labels not zlib": broken(lambda c: c.update(labels="00000000")),
    "labels of another length": broken(lambda c: c.update(labels=pack_bytes(np.zeros(5, np.uint8)))),
    "a better accuracy": broken(lambda c: c.update(accuracy=c["accuracy"] / 2 + 0.001)),
    "no accuracy": broken(lambda c: c.update(accuracy=None)),
    "history null": broken(lambda c: c.update(history=None)),
    "recipe changed": broken(lambda c: c["recipe"].update(lr=0.5)),
    "unknown recipe field": broken(lambda c: c["recipe"].update(momentum=0.5)),
    "unknown model": broken(lambda c: c["recipe"].update(model="resnet")),
    "recipe null": broken(lambda c: c.update(recipe=None)),
    "another seed": broken(lambda c: c.update(seed=9)),
    "another format": broken(lambda c: c.update(format=99)),
    "other data": broken(lambda c: c["data"].update(fingerprint="f" * 16)),
    "data null": broken(lambda c: c.update(data=None)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_record_is_one_clear_sentence(finished, tmp_path, kind):
    path = tmp_path / "record.json"
    path.write_text(DAMAGE[kind](finished.path.read_text("utf-8")), "utf-8")
    with pytest.raises(UserError) as error:
        read_record(path, published=False)
    assert str(path) in str(error.value) and "删去" in str(error.value)
