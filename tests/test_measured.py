"""Measurements on trained models: kept, published and reused while the runs they were made on are the same."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from toy import PLAIN, toy

from labreport.analysis import measured as module
from labreport.analysis.measured import already, measured
from labreport.study import Study
from vitlib.errors import UserError
from vitlib.plans import Job, Profile
from vitlib.store import Store

VALUES = {
    "right": {"基线": [np.arange(20) % 3 == 0, np.ones(20, bool)]},
    "times": {"批 1": {"基线": np.array([0.1, 0.25])}},
    "rows": [{"kernel": "naive", "seconds": 1.5}],
    "images": 20,
    "mean": np.float64(0.5),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_VIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(module, "results_dir", lambda: tmp_path / "results")


def study(profile, *keys):
    return Study("2.4", profile, None, {f"配方 {key}": [SimpleNamespace(key=key)] for key in keys})


def published(tmp_path, *keys):
    """Measure in the profile quick and publish that."""
    measured(study("quick", *keys), "speed", lambda: VALUES)
    made = tmp_path / "runs" / "measured" / "quick" / "2.4-speed.json"
    target = tmp_path / "results" / "measured" / made.name
    target.parent.mkdir(parents=True)
    target.write_bytes(made.read_bytes())
    return target


def never():
    raise AssertionError("measured again")


def test_a_measurement_comes_back_as_it_was_with_the_machine_it_was_made_on():
    found = measured(study("quick", "a"), "speed", lambda: VALUES)
    for name, seeds in VALUES["right"].items():
        assert all(f.dtype == bool and np.array_equal(f, s) for f, s in zip(found["right"][name], seeds, strict=True))
    assert np.array_equal(found["times"]["批 1"]["基线"], [0.1, 0.25])
    assert (found["rows"], found["images"], found["mean"]) == (VALUES["rows"], 20, 0.5)
    assert found["machine"]["name"] and found["device"]["name"]


def test_the_published_report_reads_what_was_measured_on_the_same_runs(tmp_path):
    published(tmp_path, "a", "b")
    found = measured(study("published", "b", "a"), "speed", never)
    assert np.array_equal(found["right"]["基线"][0], VALUES["right"]["基线"][0])


def test_more_seeds_do_not_undo_a_measurement(tmp_path):
    published(tmp_path, "a")
    more = Study(
        "2.4", "published", None, {"配方 a": [SimpleNamespace(key="a"), SimpleNamespace(key="seed 1")], "无": []}
    )
    assert measured(more, "speed", never)["images"] == 20


def test_runs_that_came_later_do_not_undo_it_either_but_do_not_count_as_measured(tmp_path):
    published(tmp_path, "a", "b")
    assert measured(study("published", "c", "b", "a"), "speed", never)["images"] == 20
    assert already("2.4-speed.json", ["a", "b"]) and already("2.4-speed.json", ["a", "b", "c"]) is None
    again = measured(study("published", "a"), "speed", lambda: {"images": 7}, keys=["a", "b", "c"])
    assert again["images"] == 7  # what names its runs is made on all of them


@pytest.mark.parametrize("keys", [("a",), ("a", "c")])
def test_other_runs_are_measured_anew(tmp_path, keys):
    published(tmp_path, "a", "b")
    assert measured(study("published", *keys), "speed", lambda: {"images": 7})["images"] == 7


def test_other_profiles_always_measure(tmp_path):
    published(tmp_path, "a")
    assert measured(study("quick", "a"), "speed", lambda: {"images": 7})["images"] == 7


@pytest.mark.parametrize(
    "text", ["", "[]", '{"runs": ["a"]}', '{"runs": ["a"], "values": {"x": {"bits": "!", "length": 8}}}']
)
def test_a_damaged_file_is_named(tmp_path, text):
    path = published(tmp_path, "a")
    path.write_text(text)
    with pytest.raises(UserError, match=r"2\.4-speed\.json"):
        measured(study("published", "a"), "speed", never)


def test_a_number_that_is_none_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        measured(study("quick", "a"), "speed", lambda: {"mean": float("nan")})
    assert not [*(tmp_path / "runs").rglob("*.json")]


def test_an_array_that_would_come_back_as_another_is_refused():
    with pytest.raises(TypeError, match="one dimension"):
        measured(study("quick", "a"), "speed", lambda: {"right": np.ones((2, 3), bool)})


def test_what_is_published_is_plain_json(tmp_path):
    story = json.loads(published(tmp_path, "a").read_text("utf-8"))
    assert story["runs"] == ["a"] and story["values"]["times"]["批 1"]["基线"] == {"array": [0.1, 0.25]}


def test_a_report_publishes_its_runs_and_its_own_profiles_measurements(tmp_path, monkeypatch):
    data, store = toy(), Store(tmp_path / "runs", tmp_path / "results")
    profile = Profile("quick", seeds=2)
    jobs = [Job(PLAIN, seed, 1, "") for seed in range(2)]
    run = store.get(PLAIN, 0, data, show=False)  # the second seed was never trained
    for name, value in {"load": lambda source: data, "Store": lambda: store, "resolve": lambda *given: profile}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module.plans, "jobs", lambda plan, chosen: jobs)
    measured(study("quick", run.key), "speed", lambda: VALUES)
    measured(study("smoke", "b"), "onnx", lambda: VALUES)
    names = [path.name for path in module.publish_report("auto", "course")]
    assert names == [f"{run.name}-s0-{run.key}.json", "2.4-speed.json"]
    assert all((tmp_path / "results" / part).is_file() for part in (names[0], "measured/2.4-speed.json"))
    assert measured(study("published", run.key), "speed", never)["images"] == 20
    measured(study("quick", "c"), "speed", lambda: {"images": 1})  # of the same profile with other epochs, say
    assert [path.name for path in module.publish_report("auto", "course")] == names[:1]
    measured(study("quick", run.key), "speed", lambda: {"images": 0})  # as where the weights are missing
    assert [path.name for path in module.publish_report("auto", "course")] == names[:1]
    assert measured(study("published", run.key), "speed", never)["images"] == 20


def test_what_does_not_depend_on_the_profile_is_taken_from_what_is_published_of_its_own_runs(tmp_path):
    published(tmp_path, "w")  # of the runs "w"
    assert measured(study("hours", "a"), "speed", never, keys=["w"])["images"] == 20
    again = measured(study("hours", "a"), "speed", lambda: {"images": 7}, keys=["v", "w"])  # other weights
    assert again["images"] == 7
    made = tmp_path / "runs" / "measured" / "hours" / "2.4-speed.json"
    assert json.loads(made.read_text("utf-8"))["runs"] == ["v", "w"]
