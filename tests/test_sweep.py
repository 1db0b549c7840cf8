"""Plans, their prices, sweeping them within a budget, and opening a section of the report."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn
from toy import CPU, ORIGINAL, PLAIN, VIT, same, toy

from labreport import study
from labreport.study import open_study, published_runs, settle
from vitlib import plans, remedies, sweep
from vitlib.engine import Trainer
from vitlib.errors import UserError
from vitlib.plans import BRIEF, DAYS, FULL, HOURS, PROFILES, SECTIONS, TIERS, Entry, Job, Profile, jobs, profile_named
from vitlib.recipe import NUMERICS
from vitlib.recipes import RECIPES
from vitlib.store import Store
from vitlib.sweep import H100_FLOPS, affordable, costs, missing, price_list, prices, resolve

QUICK = PLAIN.but(name="quick", epochs=2)
PRETRAIN = ORIGINAL.but(name="pre", objective="autoencode", ema=0.0, epochs=3)
TUNED = ORIGINAL.but(name="tuned", init_from=PRETRAIN)
PLAN = [Job(VIT, 0, 1, "a"), Job(TUNED, 0, 1, "b"), Job(QUICK, 0, 2, "c"), Job(QUICK, 1, 2, "c")]


@pytest.fixture
def trainings(monkeypatch):
    """List what really trains, as (name, seed, first step)."""
    seen = []
    run = Trainer.run
    monkeypatch.setattr(
        Trainer, "run", lambda job: seen.append((job.recipe.name, job.seed, job.state.step)) or run(job)
    )
    return seen


# --- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [*SECTIONS, "all"])
@pytest.mark.parametrize("name", PROFILES)
def test_a_plan_names_each_run_once_in_the_order_of_tiers(section, name):
    todo = jobs(section, PROFILES[name])
    assert todo and all(job.tier in TIERS for job in todo)
    assert [job.tier for job in todo] == sorted(job.tier for job in todo)
    runs = [job.recipe.key(job.seed, f"{job.factor}") for job in todo]
    assert len(set(runs)) == len(runs)
    names = [(job.recipe.name, job.seed) for job in todo]
    assert len(set(names)) == len(names)
    tables = SECTIONS.values() if section == "all" else [SECTIONS[section]]
    wanted: dict[str, int] = {}  # the earliest tier in which any entry of the plan wants a run
    for entry in (entry for table in tables for entry in table):
        for seed in range(PROFILES[name].seeds):
            if PROFILES[name].takes(entry, seed):
                key = PROFILES[name].fit(entry.recipe).key(seed, f"{entry.factor}")
                wanted[key] = min(wanted.get(key, 99), entry.tier_of(seed))
    assert wanted == {key: job.tier for key, job in zip(runs, todo, strict=True)}


def test_the_whole_plan_holds_every_section():
    whole = {(job.recipe.name, job.seed) for job in jobs("all", PROFILES["full"])}
    parts = [{(job.recipe.name, job.seed) for job in jobs(s, PROFILES["full"])} for s in SECTIONS]
    assert whole == set().union(*parts)


def test_labels_and_recipe_names_mean_one_thing():
    for table in SECTIONS.values():
        assert len({entry.label for entry in table}) == len(table)
    entries = [entry for table in SECTIONS.values() for entry in table]
    by_name = {}
    for entry in entries:
        assert by_name.setdefault(entry.recipe.name, entry.recipe.spec()) == entry.recipe.spec()
        if entry.recipe.name in RECIPES:
            assert RECIPES[entry.recipe.name].spec() == entry.recipe.spec()


def test_a_first_tier_alone_is_a_complete_weaker_report():
    first = profile_named("full:1")
    assert first.seeds == 1
    assert {job.tier for job in jobs("all", first)} == {1}
    for section in ("2.1", "2.3"):
        assert any(first.takes(entry) for entry in SECTIONS[section])


def test_each_tier_is_at_most_25_minutes_of_one_h100_and_all_give_three_seeds():
    todo = jobs("all", PROFILES["full"])
    price = prices(todo, 35_580, H100_FLOPS)  # the course's training images
    assert [*price] == [*TIERS] and max(price.values()) <= 25 * 60
    seeds = {}
    for job in todo:
        seeds.setdefault(job.recipe.name, set()).add(job.seed)
    assert {len(found) for found in seeds.values()} == {3}  # fewer allow no verdict


def test_a_profile_cuts_images_epochs_and_seeds_but_no_model():
    quick = PROFILES["quick"]
    for entry in SECTIONS["2.1"]:
        recipe = quick.fit(entry.recipe)
        assert recipe.model_args == entry.recipe.model_args and recipe.lr == entry.recipe.lr
        assert recipe.epochs == dict(quick.epochs)[recipe.model] < entry.recipe.epochs
        assert recipe.warmup_epochs <= recipe.epochs / 5
        if recipe.init_from:
            assert recipe.init_from.epochs == recipe.epochs
        assert PROFILES["full"].fit(entry.recipe) is entry.recipe


def test_tails_are_cut_from_cifar_10_itself_where_the_course_was_rebuilt_from_it(data, monkeypatch):
    rebuilt, full = replace(data, name="cifar10"), replace(data, name="cifar10-lt")
    monkeypatch.setattr(plans, "load", lambda source, **how: {"cifar10": rebuilt, "cifar10-lt": full}[source])
    assert plans.tailed(rebuilt, 10) is full and plans.tailed(rebuilt, 0) is rebuilt
    part = rebuilt.subset(40, None)  # a profile's cut has its tail cut from the same images
    assert plans.tailed(part, 10).name == "cifar10" and len(plans.tailed(part, 10).train) < 40


def test_hours_of_a_processor_give_all_combinations_and_every_remedy_on_every_tail():
    quick, hours, full = (
        {job.recipe.name for job in jobs("2.2", PROFILES[name])} for name in ("quick", "hours", "full")
    )
    assert quick < hours < full
    combinations = {remedies.combination("vit", chosen).name for chosen in remedies.SUBSETS}
    assert combinations - hours == {"vit-a"} and "vit" in hours  # at a profile's epochs these two are one run
    tails = {name for name in full if "-if" in name}
    assert tails <= hours and {name.rpartition("-if")[2] for name in tails} == {"10", "50", "100"}
    assert not any(name.endswith("-long") for name in hours)  # its epochs would be cut to those of the others
    assert jobs("2.4", PROFILES["days"]) == jobs("2.4", PROFILES["hours"])
    assert [p.scope for p in PROFILES.values()] == [BRIEF, BRIEF, HOURS, DAYS, FULL]


def test_days_of_a_processor_give_every_setting_of_2_3_and_every_remedy_without_pre_training():
    days, hours, full = ({job.recipe.name for job in jobs("all", PROFILES[name])} for name in ("days", "hours", "full"))
    assert hours < days
    assert all(PROFILES["days"].takes(entry) for entry in SECTIONS["2.3"])
    assert {"vit-patch-size-2", "original-20-width-512"} <= days - hours
    assert {remedies.remedied(label).name for label in remedies.LACKED} - days == {"vit-a-weighted"}  # "vit-aw" to 2.2
    # what needs its own lengths, or a CNN, is a GPU's
    assert {"vit-mae-75", "vit-awo-long", "child-by-cnn", "ladder-stem"} <= full - days


def test_a_profile_takes_no_more_images_than_there_are(data):
    assert Profile("p", 1000, 1000).cut(data) is data
    few = Profile("p", 30, 12).cut(data)
    assert (len(few.train), len(few.test)) == (30, 12) and few.fingerprint != data.fingerprint
    assert "30" in few.provenance and "12" in few.provenance


def test_profiles_and_plans_by_name():
    changed = profile_named("quick", images=99, epochs=2, seeds=4, test_images=None)
    assert (changed.images, changed.seeds, changed.test_images) == (99, 4, PROFILES["quick"].test_images)
    assert dict(changed.epochs) == {"original": 2, "vit": 2}
    for name in ("quik", "full:99", "full:x", ""):
        with pytest.raises(UserError, match=r"smoke、quick、hours、days、full"):
            profile_named(name)
    for field, value in (
        ("seeds", "abc"),
        ("images", 2.5),
        ("images", 0),
        ("epochs", -1),
    ):  # from a notebook's parameters
        with pytest.raises(UserError, match=f"{field}={value!r} 须为正整数"):
            profile_named("quick", **{field: value})
    with pytest.raises(UserError, match=r"2\.1、2\.2、2\.3、2\.4、all"):
        jobs("2.9", PROFILES["quick"])


# --- prices ---------------------------------------------------------------------------------------


def test_a_price_is_three_forward_passes_an_image_and_epoch():
    recipe = RECIPES["vit"]
    flops = costs([Job(recipe, 0, 1, "")])["vit"]
    assert 4.2e8 < flops < 4.4e8
    price = prices([Job(recipe, seed, 1 + seed, "") for seed in range(2)], 1000, 1e12)
    assert price == pytest.approx({1: 3 * flops * 1000 * 100 / 1e12, 2: 3 * flops * 1000 * 100 / 1e12})


def test_a_pre_training_is_paid_once_a_seed():
    improved = RECIPES["original-improved"]
    twin = improved.but(name="twin", lr=1e-3)
    alone, both = (prices([Job(r, 0, 1, "") for r in todo], 100, 1e12)[1] for todo in ([improved], [improved, twin]))
    cost = costs([Job(improved, 0, 1, "")])
    own, before = 501 * cost["original-improved"], 500 * cost["original-pretrain"]
    assert both == pytest.approx(alone * (1 + own / (own + before)))
    # the autoencoder has no classifier, whose first layer alone takes (64 * 256)^2 / 2 products
    assert cost["original-improved"] - cost["original-pretrain"] == pytest.approx((64 * 256) ** 2, rel=0.05)


def test_the_tiers_that_fit_are_affordable():
    price = {1: 100.0, 2: 50.0, 3: 1000.0}
    full = PROFILES["full"]
    assert [affordable(full, price, seconds) for seconds in (99, 100, 149, 150, 5000)] == [0, 1, 1, 2, 3]
    assert affordable(profile_named("full:2"), price, 5000) == 2


def test_a_price_list_tells_what_is_there_and_what_the_rest_costs(shelf, data, monkeypatch):
    monkeypatch.setattr(sweep, "calibrate", lambda device: 1e9)
    shelf.get(QUICK, 1, data, show=False)
    listed = price_list(PLAN, data, shelf)
    assert [job["done"] for job in listed["jobs"]] == [False, False, False, True]
    assert [(tier["tier"], tier["missing"]) for tier in listed["tiers"]] == [(1, 2), (2, 1)]
    left = [job for job in PLAN if job is not PLAN[3]]
    for rate, column in ((1e9, "here_minutes"), (H100_FLOPS, "h100_minutes")):
        expected = prices(left, len(data.train), rate)
        for tier in listed["tiers"]:
            assert tier[column] == pytest.approx(expected[tier["tier"]] / 60) and tier[column] > 0


def test_calibration_counts_three_forward_passes_an_image_and_neither_the_counting_nor_what_warms_up(monkeypatch):
    now, shown = [0.0], []

    def counted(model):
        now[0] += 1000.0
        return SimpleNamespace(flops=1000)

    class Model(nn.Linear):
        def forward(self, x):
            now[0] += 2.0 if len(shown) > 1 else 100.0
            shown.append(len(x))
            return super().forward(x.flatten(1)[:, :4])

    monkeypatch.setattr(sweep, "build_model", lambda *_: Model(4, 10))
    monkeypatch.setattr(sweep, "count", counted)
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now[0])
    assert sweep.calibrate(CPU, seconds=9.0) == 3 * 1000 * shown[0] / 2.0
    assert len(shown) == 7  # two that warm up, and what fits into nine seconds


# --- sweeping -------------------------------------------------------------------------------------


def test_a_sweep_trains_what_is_missing_in_the_order_given(shelf, data, trainings):
    shelf.get(QUICK, 0, data, show=False)
    del trainings[:]
    assert missing(PLAN, data, shelf) == [PLAN[0], PLAN[1], PLAN[3]]
    done = sweep.sweep(PLAN, data, shelf, show=False)
    assert trainings == [("toy-vit", 0, 0), ("pre", 0, 0), ("tuned", 0, 0), ("quick", 1, 0)]
    assert [(run.name, run.seed) for run in done.runs] == [
        ("toy-vit", 0), ("tuned", 0), ("quick", 0), ("quick", 1),
    ]  # fmt: skip
    assert done.left == [] == missing(PLAN, data, shelf)
    again = sweep.sweep(PLAN, data, shelf, show=False)
    assert len(again.runs) == 4 and len(trainings) == 4


def test_without_time_a_sweep_only_tells_what_is_left(shelf, data, trainings):
    shelf.get(QUICK, 0, data, show=False)
    done = sweep.sweep(PLAN, data, shelf, budget=-1.0, show=False)
    assert [run.name for run in done.runs] == ["quick"]
    assert done.left == [PLAN[0], PLAN[1], PLAN[3]] and len(trainings) == 1


def test_a_budget_stops_a_run_cleanly_and_the_next_sweep_goes_on(shelf, data, tmp_path, trainings):
    whole = Store(tmp_path / "whole", tmp_path / "published")
    expected = sweep.sweep(PLAN, data, whole, show=False).runs
    del trainings[:]
    left = []
    for _ in range(200):
        done = sweep.sweep(PLAN, data, shelf, budget=0.1, show=False)
        assert len(done.runs) + len(done.left) == len(PLAN)
        if not done.left:
            break
        left.append(done.left[0])
        key = left[-1].recipe.key(left[-1].seed, data.fingerprint)
        assert not (shelf.root / key).exists()
    assert len(left) >= 2  # it was really interrupted ...
    resumed = [step for _, _, step in trainings]
    assert max(resumed) > 1 and resumed.count(0) == 5  # ... and no run began twice
    for run, other in zip(expected, done.runs, strict=True):
        assert same(run.load_state(), other.load_state()) and run.record["history"] == other.record["history"]


@pytest.mark.parametrize("budget", [None, 60.0])
def test_a_job_cut_to_a_long_tail_trains_on_the_tail(shelf, data, budget):
    todo = [Job(QUICK, 0, 1, "whole"), Job(QUICK, 0, 1, "tail", factor=4.0)]
    whole, tail = sweep.sweep(todo, data, shelf, budget=budget, show=False).runs
    assert whole.data["fingerprint"] == data.fingerprint
    assert tail.data["fingerprint"] == plans.tailed(data, 4.0).fingerprint != data.fingerprint
    assert max(tail.data["class_counts"]) == 4 * min(tail.data["class_counts"])
    assert missing(todo, data, shelf) == []


def test_workers_side_by_side_train_the_same_runs(shelf, data, tmp_path):
    expected = sweep.sweep(PLAN[2:], data, shelf, show=False).runs
    pair = Store(tmp_path / "pair", tmp_path / "published")
    nothing = sweep.sweep(PLAN[2:], data, pair, budget=-1.0, workers=2, show=False)
    assert (nothing.left, nothing.runs) == (PLAN[2:], [])
    done = sweep.sweep(PLAN[2:], data, pair, workers=2, show=False)
    assert (len(done.runs), done.left) == (2, [])
    for run, other in zip(expected, done.runs, strict=True):
        assert run.key == other.key and other.epochs == 2


def test_a_worker_says_what_went_wrong(shelf, data):
    wrong = QUICK.but(name="wrong", protocol="original", init_from=PRETRAIN)  # an encoder of another model
    with pytest.raises(UserError, match="预训练编码器"):
        sweep.sweep([Job(wrong, 0, 1, "d"), *PLAN[2:]], data, shelf, workers=2, show=False)


FRAGILE = ORIGINAL.but(name="fragile", model_args={"patch_size": 8, "dropout": 0.3}, batch_size=2)  # comes to a NaN
DOOMED = ORIGINAL.but(name="doomed", model_args={"patch_size": 8}, init_from=FRAGILE)


def test_a_failed_run_stops_only_those_that_start_from_it(shelf, data, capsys):
    todo = [Job(DOOMED, 0, 1, "e"), Job(QUICK, 0, 1, "c")]
    done = sweep.sweep(todo, data, shelf, show=False)
    assert done.left == todo[:1] and [run.name for run in done.runs] == ["quick"]
    assert shelf.find(FRAGILE, 0, data).failed
    assert "doomed（种子 0）做不了：运行 fragile（种子 0）没有训练成功" in capsys.readouterr().err


def test_a_section_goes_on_without_the_runs_that_cannot_start(shelf, data, monkeypatch, capsys):
    monkeypatch.setitem(study.SECTIONS, "2.1", [Entry("e", DOOMED, 1, (1, 1)), Entry("c", QUICK, 1, (1, 1))])
    opened = open_study("2.1", "full", data, seeds=1, store=shelf, show=False)
    assert [*opened.runs] == ["c"] and "“e”缺种子 0" in capsys.readouterr().err


def test_a_worker_that_is_killed_is_told_in_one_sentence(shelf, data, monkeypatch):
    broken = Future()
    broken.set_exception(BrokenProcessPool("a process was terminated abruptly"))
    monkeypatch.setattr(sweep.ProcessPoolExecutor, "submit", lambda pool, work, job: broken)
    with pytest.raises(UserError, match=r"内存不够.*--workers"):
        sweep.sweep(PLAN[2:], data, shelf, workers=2, show=False)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/task").exists(),
    reason="only Linux lists a process's children under /proc; what is tested has no branch by system",
)
def test_workers_end_with_a_sweep_that_is_killed(tmp_path):
    environment = os.environ | {"CIFAR_VIT_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-m", "vitlib", "sweep", "2.3", "--profile", "quick", "--data", "synthetic"]
    parent = subprocess.Popen([*command, "--workers", "2"], env=environment, stderr=subprocess.DEVNULL)
    try:
        until(lambda: len(list((tmp_path / "runs").glob("*.work"))) == 2)  # both are training
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert len(children) >= 2
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not any(alive(child) for child in children))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a group of processes is interrupted as by Ctrl-C on POSIX only")
def test_an_interrupted_sweep_of_two_workers_says_so_in_one_sentence(tmp_path):
    environment = os.environ | {"CIFAR_VIT_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-m", "vitlib", "sweep", "2.1", "--profile", "quick", "--data", "synthetic"]
    options = {"env": environment, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    parent = subprocess.Popen([*command, "--workers", "2"], **options)
    try:
        # both are training: the first runs of 2.1 have no pre-training, whose folder would be a worker's second
        until(lambda: len(list((tmp_path / "runs").glob("*.work"))) == 2)
        os.killpg(parent.pid, signal.SIGINT)
        _, said = parent.communicate(timeout=120)
    finally:
        parent.kill()
    assert parent.returncode == 130 and said.count("已中断") == 1
    assert "Traceback" not in said and "Warning" not in said


def until(happened, seconds=120.0):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def alive(pid):
    """Whether a process is there and is more than a corpse that nobody has buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- opening a section ----------------------------------------------------------------------------


@pytest.fixture
def section(monkeypatch):
    table = [Entry("甲", QUICK, 1), Entry("乙", VIT, 1, scope=FULL)]
    monkeypatch.setitem(SECTIONS, "9.9", table)
    monkeypatch.setitem(PROFILES, "tiny", Profile("tiny", 30, 12, (("vit", 1),), seeds=2, scope=BRIEF))
    return table


def test_a_section_opens_with_its_runs_in_the_order_of_its_table(shelf, data, section, trainings):
    opened = open_study("9.9", "tiny", data, store=shelf, show=False)
    assert [*opened.runs] == ["甲"] and [run.seed for run in opened.runs["甲"]] == [0, 1]
    assert len(opened.data.train) == 30 and opened.first("甲").epochs == 1
    with pytest.raises(UserError, match=r"9\.9 节没有“丙”的运行；有的是：甲"):
        opened.first("丙")
    more = open_study("9.9", "tiny", data, store=shelf, show=False, epochs=2, seeds=1, extra=[Entry("丙", ORIGINAL, 1)])
    assert [*more.runs] == ["甲", "丙"] and [len(runs) for runs in more.runs.values()] == [1, 1]
    assert [row["轮数"] for row in more.rows()] == [2, 2] and more.rows()[0]["配置"] == "甲"
    assert len(trainings) == 4
    beyond = [Entry("乙", VIT, 1)]  # in the table, beyond the profile's scope, and wanted by a user all the same
    asked = open_study("9.9", "tiny", data, store=shelf, show=False, seeds=1, extra=beyond)
    assert [*asked.runs] == ["甲", "乙"] and len(asked.runs["乙"]) == 1


def test_what_will_be_trained_is_told_with_its_price_before_it_is(shelf, data, section, trainings, capsys, monkeypatch):
    monkeypatch.setattr(study, "calibrate", lambda device: 1e6)
    open_study("9.9", "tiny", data, store=shelf, seeds=1)
    todo = [Job(QUICK.but(epochs=1, warmup_epochs=0.2), 0, 0, "甲")]
    minutes = prices(todo, 30, 1e6)[0] / 60
    told = capsys.readouterr().err
    assert (
        f"还要训练 1 次，估计共 {minutes:.0f} 分钟" in told and f"  甲：1 个种子，1 轮，约 {minutes:.1f} 分钟" in told
    )
    open_study("9.9", "tiny", data, store=shelf)
    assert "还要训练 1 次" in capsys.readouterr().err  # the other seed
    open_study("9.9", "tiny", data, store=shelf)
    assert "还要训练" not in capsys.readouterr().err


def test_auto_is_quick_on_a_processor(data):
    assert resolve("auto", data).name == "quick"


def test_published_sections_compare_runs_of_one_data_set_only(shelf, data, section, monkeypatch):
    with pytest.raises(UserError, match="还没有已发布的运行记录"):
        published_runs(section, shelf)
    other = toy(train=60, seed=5)
    for recipe, seed, source in ((QUICK, 0, data), (QUICK, 1, data), (VIT, 0, data), (QUICK, 0, other)):
        shelf.publish(shelf.get(recipe, seed, source, show=False))
    shelf.publish(shelf.get(QUICK.but(epochs=1), 0, data, show=False))  # a shorter run of the same name
    found = published_runs(section, shelf)
    assert [*found] == ["甲", "乙"] and [run.seed for run in found["甲"]] == [0, 1]
    assert {run.data["fingerprint"] for runs in found.values() for run in runs} == {data.fingerprint}
    assert {run.epochs for run in found["甲"]} == {2}
    # at a profile's length two recipes may be one run, but a control that is only longer is served by no shorter one
    twin, longer = Entry("丙", QUICK.but(name="twin"), 1), Entry("长", QUICK.but(name="long", epochs=9), 1, scope=FULL)
    assert [*published_runs([*section, twin, longer], shelf)] == ["甲", "乙", "丙"]
    opened = open_study("9.9", "published", data, store=shelf, show=False)
    assert [run.key for run in opened.runs["甲"]] == [run.key for run in found["甲"]]
    assert opened.data is data
    small = VIT.but(name="small", lr=5e-4)
    shelf.publish(shelf.get(small, 0, data.subset(30, 12), show=False))
    monkeypatch.setitem(SECTIONS, "9.8", [Entry("小", small, 1)])
    cut = open_study("9.8", "published", data, store=shelf, show=False)  # the very images of the record
    assert cut.data.fingerprint == cut.first("小").data["fingerprint"] and len(cut.data.train) == 30
    assert open_study("9.8", "published", other, store=shelf, show=False).data is other
    with pytest.raises(UserError, match=r"没有这一节要用的运行记录（toy-original）"):
        published_runs([Entry("丁", ORIGINAL, 1)], shelf)


def test_published_records_of_full_size_serve_each_entry_at_its_own_length(shelf, monkeypatch):
    """At a profile's length `vit`, its controls and its settings are one run; at full size each has its own."""
    about = {"fingerprint": "f", "train_images": 1, "provenance": ""}
    made = [
        SimpleNamespace(
            name=job.recipe.name, recipe=job.recipe, seed=job.seed, epochs=job.recipe.epochs, data=about,
            key=job.recipe.key(job.seed, "f"),
        )
        for job in jobs("all", profile_named("full")) if not job.factor
    ]  # fmt: skip
    monkeypatch.setattr(study, "_published", lambda store: made)
    for name, table in SECTIONS.items():
        found = published_runs(table, shelf)
        for entry in table:
            if not entry.factor:
                assert {run.epochs for run in found[entry.label]} == {entry.recipe.epochs}, (name, entry.label)
                assert {run.recipe.spec() == entry.recipe.spec() for run in found[entry.label]} == {True}


def test_stale_records_must_be_accepted_by_name(shelf, data, monkeypatch, capsys):
    monkeypatch.setattr(study, "Store", lambda: shelf)
    monkeypatch.setattr(study, "load", lambda source: data)
    with pytest.raises(UserError, match="还没有已发布的运行记录"):  # at once, not after the first notebook
        settle("published", "x")
    shelf.publish(shelf.get(QUICK, 0, data, show=False))
    assert settle("published", "x") == ("published", "x")
    monkeypatch.setattr("vitlib.record.NUMERICS", NUMERICS + 1)
    with pytest.raises(UserError, match=r"quick.*--accept"):
        settle("published", "x")
    assert settle("published", "auto", accept=["quick"]) == ("published", "folder")
    assert "玩具数据" in capsys.readouterr().err
