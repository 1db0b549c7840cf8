"""The published weights side by side: whose records speak for them, and what is measured."""

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy

from labreport.analysis import assess, shipped
from vitlib import use
from vitlib.data import TestSet, load
from vitlib.paths import weights_dir
from vitlib.recipes import CPU_CHILD, CPU_VARIED
from vitlib.store import Store
from vitlib.weights import save_weights


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Two toy models in the place of the published ones: best with two seeds, light with one."""
    data, store = toy.toy(train=200, test=40), Store(tmp_path / "runs", tmp_path / "published")
    monkeypatch.setattr(shipped, "weights_dir", lambda: tmp_path)
    monkeypatch.setattr("vitlib.weights.weights_dir", lambda: tmp_path)
    large = toy.PLAIN.but(name="large", epochs=2)
    small = large.but(name="small", model_args={"ffn_hidden_channels": 8})
    runs = [store.get(recipe, seed, data, show=False) for recipe, seed in ((large, 1), (large, 0), (small, 0))]
    store.get(large.but(epochs=1), 0, data, show=False)  # of the same name, but shorter
    for name, run in (("best", runs[0]), ("light", runs[2])):
        save_weights(tmp_path / f"{name}.safetensors", run.load_state(), run.record)
    return data, store, runs, tmp_path


def test_the_seeds_of_a_recipe_speak_for_its_weights(shelf):
    _, store, runs, folder = shelf
    assert [run.key for run in shipped.seeds_of("best", store.all())] == [run.key for run in runs[:2]]
    assert [run.key for run in shipped.seeds_of("light", store.all())] == [runs[2].key]
    assert shipped.seeds_of("light", runs[:2]) == []
    (folder / "light.safetensors").unlink()
    assert shipped.seeds_of("light", store.all()) == []


def test_a_teacher_is_known_by_its_training_and_not_by_its_name(shelf):
    _, _, runs, _ = shelf
    pupil = SimpleNamespace(recipe=CPU_CHILD.but(teacher=CPU_VARIED.but(name="cpu-child-teacher")))
    assert shipped.teacher_of(pupil) == "cpu-varied"
    stranger = SimpleNamespace(recipe=runs[0].recipe.but(teacher=runs[2].recipe))
    assert shipped.teacher_of(stranger) == "small" and shipped.teacher_of(runs[0]) == ""


def test_all_forms_are_measured_and_the_float_one_answers_as_its_record_says(shelf):
    data, _, runs, folder = shelf
    found = shipped.measure(data, folder, seconds=0, least=2)
    assert np.array_equal(found["correct"]["best"]["PyTorch"], runs[0].correct)
    assert np.array_equal(found["correct"]["light"]["PyTorch"], runs[2].correct)
    assert {name: answers.keys() for name, answers in found["correct"].items()} == dict.fromkeys(
        shipped.NAMES, {"PyTorch": 0, "ONNX int8": 0}.keys()
    )
    assert [*found["times"]] == ["1 线程", "2 线程"]
    assert all(len(times) == 2 and (times > 0).all() for each in found["times"].values() for times in each.values())
    told = shipped.told_faster({how: dict.fromkeys(each, np.ones(5)) for how, each in found["times"].items()})
    assert (
        told
        == "1 线程时是 PyTorch 的 1.00 倍、ONNX fp32 的 1.00 倍、ONNX int8 的 1.00 倍；2 线程时依次是 1.00、1.00、1.00 倍"
    )
    assert len(found["times"]["1 线程"]) == 6 and found["bytes"]["light"] < found["bytes"]["best"]


def test_the_mirror_image_counts_as_much_as_the_image(shelf):
    data = shelf[0]
    symmetric = replace(data, test=TestSet((data.test.images + data.test.images.flip(-1)) // 2, data.test.labels))
    trained = shipped.load_trained("best")
    plain = assess.correct(trained.model, symmetric.test, trained.recipe.normalize)
    assert np.array_equal(shipped.measure_mirrored(symmetric)["mirrored"], plain)  # nothing changes for such images
    both = shipped.mirrored(lambda images: images[:, 0, :, :2].flatten(1))  # "logits" that see the left edge only
    pixels = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    assert torch.equal(both(pixels), both(pixels.flip(-1)))
    assert torch.equal(both(pixels)[0, :2], (pixels[0, 0, 0, :2] + pixels[0, 0, 0, [3, 2]]) / 2)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("CIFAR_VIT_DATA"), reason="needs the course's data in CIFAR_VIT_DATA")
@pytest.mark.parametrize("name", shipped.NAMES)
def test_the_published_weights_answer_as_their_record_says(name):
    trained = shipped.load_trained(name)
    (run,) = [run for run in Store().all() if run.key == trained.story["key"]]
    found = use.evaluate_images(trained, load("course").test)
    assert found["images"] == len(run.labels) == 4870
    assert found["accuracy"] == pytest.approx(run.accuracy, abs=0.003)  # rounded to fp16, and another processor


def test_the_published_weights_have_their_records():
    for name in shipped.NAMES:
        assert (weights_dir() / f"{name}.safetensors").is_file()
        assert len(shipped.seeds_of(name, Store().all())) >= 1
