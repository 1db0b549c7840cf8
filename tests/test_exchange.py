"""Runs carried between machines: bounded packages, verified on arrival, nothing foreign let in."""

import hashlib
import json
import random
import re
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import PLAIN, VIT, same, toy

from vitlib import checkpoint, device, exchange
from vitlib.engine import Trainer
from vitlib.errors import UserError
from vitlib.exchange import export, import_runs
from vitlib.state import OutOfTime
from vitlib.store import Store

SHORT = PLAIN.but(name="toy-short", epochs=1)
KEYS = [f"{i:016x}" for i in range(6)]


@pytest.fixture(scope="module")
def data():
    return toy()


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A store with three runs; tests that change it copy it."""
    store = Store(tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("published"))
    for seed in range(3):
        store.get(SHORT, seed, data, show=False)
    return store


@pytest.fixture
def elsewhere(tmp_path):
    return Store(tmp_path / "elsewhere", tmp_path / "elsewhere-published")


def keys(store):
    return [run.key for run in store.all()]


def members(folder):
    """Return each zip's names in order, by its own name."""
    out = {}
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            out[path.name] = [name for name in archive.namelist() if name != "manifest.json"]
    return out


# --- packing --------------------------------------------------------------------------------------

SIZES = st.tuples(st.integers(0, 3000), st.integers(0, 30_000), st.integers(0, 60_000))


@given(st.lists(SIZES, min_size=1, max_size=6))
@settings(max_examples=30)
def test_packages_stay_in_their_bounds_and_lose_nothing_silently(tmp_path_factory, sizes):
    root = tmp_path_factory.mktemp("store")
    store, out = Store(root, root / "published"), root / "out"
    everything = []
    for key, (record, weights, state) in zip(KEYS, sizes, strict=False):
        for name, size in (
            (f"{key}/record.json", record),
            (f"{key}/weights.safetensors", weights),
            (f"{key}.work/checkpoint.safetensors", state),
        ):
            if size:
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_bytes(b"x" * size)
                everything.append(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "MOST_FILES", 3)
        patch.setattr(exchange, "FILE_BYTES", 40_000)
        patch.setattr(exchange, "TOTAL_BYTES", 90_000)
        left_out = export(store, [*KEYS, *KEYS], out)  # a key named twice is packed once
    zips = sorted(out.iterdir())
    sizes_by_name = {name: (root / name).stat().st_size for name in everything}
    assert len(zips) <= 3 and all(path.stat().st_size <= 40_000 for path in zips)
    assert sum(path.stat().st_size for path in zips) <= 90_000
    parts = [name for names in members(out).values() for name in names]
    for name in parts:  # a file in parts is there with all of them
        whole, _, count = name.partition(".0of")
        assert not count or {f"{whole}.{i}of{count}" for i in range(int(count))} <= set(parts)
        assert not count or sizes_by_name[whole] > 40_000 - 2 * 1024
    packed = [name.partition(".0of")[0] for name in parts if not re.search(r"\.[1-9]of", name)]
    missing = [text.partition("（")[0] for text in left_out]
    assert sorted(packed + missing) == sorted(everything)
    assert not any(name.endswith("record.json") for name in missing)  # small, and first in line
    for name in missing:  # what is left out would not have fitted, even before the checkpoints
        ahead = [n for n in packed if not n.endswith("checkpoint.safetensors")]
        if name.endswith("weights.safetensors"):
            free = 90_000 - sum((root / n).stat().st_size + 1024 for n in ahead)
            rooms = [40_000 - 1024 - sum((root / n).stat().st_size + 1024 for n in z if n in ahead)
                     for z in members(out).values()]  # fmt: skip
            rooms += [40_000 - 1024] * (3 - len(zips))
            assert sizes_by_name[name] + 1024 > min(free, max(rooms))


def test_a_file_larger_than_a_zip_goes_in_parts_and_comes_back_whole(tmp_path, monkeypatch, trained, elsewhere, data):
    for run in trained.all():
        size = run.weights_path().stat().st_size
    monkeypatch.setattr(exchange, "FILE_BYTES", size // 3 + 3000)
    monkeypatch.setattr(exchange, "MOST_FILES", 20)
    assert export(trained, keys(trained), tmp_path / "out") == []
    assert any(re.search(r"\.[1-9]of[3-4]$", name) for names in members(tmp_path / "out").values() for name in names)
    assert len(import_runs(elsewhere, tmp_path / "out", publish=False)) == 3
    for seed in range(3):
        mine, its = (s.find(SHORT, seed, data, weights=True).weights_path() for s in (trained, elsewhere))
        assert mine.read_bytes() == its.read_bytes()
        assert not [path for path in its.parent.iterdir() if "of" in path.name]  # no part is left


def test_what_lacks_a_part_is_left_away(tmp_path, monkeypatch, elsewhere, data):
    here = Store(tmp_path / "here", tmp_path / "published")
    with pytest.raises(OutOfTime):
        here.get(VIT, 0, data, deadline=time.monotonic(), show=False)
    key = VIT.key(0, data.fingerprint)
    size = (here.root / f"{key}.work" / "checkpoint.safetensors").stat().st_size
    monkeypatch.setattr(exchange, "FILE_BYTES", size // 2 + 3000)
    assert export(here, [key], tmp_path / "out") == []
    _, second = sorted((tmp_path / "out").iterdir())
    content = second.read_bytes()
    second.unlink()
    assert import_runs(elsewhere, tmp_path / "out", publish=False) == []
    assert [*elsewhere.root.glob("*.work")] == []
    second.write_bytes(content)
    import_runs(elsewhere, tmp_path / "out", publish=False)
    work = elsewhere.root / f"{key}.work"
    assert [path.name for path in work.iterdir()] == ["checkpoint.safetensors"]
    assert elsewhere.get(VIT, 0, data, show=False).failed is None


def test_records_go_before_weights_and_weights_before_checkpoints(tmp_path, monkeypatch):
    store = Store(tmp_path / "runs", tmp_path / "published")
    for key in KEYS[:2]:
        (store.root / key).mkdir(parents=True)
        (store.root / f"{key}.work").mkdir()
        (store.root / key / "record.json").write_bytes(b"r" * 100)
        (store.root / key / "weights.safetensors").write_bytes(b"w" * 10_000)
        (store.root / f"{key}.work" / "checkpoint.safetensors").write_bytes(b"c" * 10_000)
    monkeypatch.setattr(exchange, "TOTAL_BYTES", 27_000)
    left_out = export(store, KEYS, tmp_path / "out")
    names = [f"{key}/{name}" for name in ("record.json", "weights.safetensors") for key in KEYS[:2]]
    assert members(tmp_path / "out") == {"runs-0.zip": names}
    assert left_out == [f"{key}.work/checkpoint.safetensors（0.0 MiB）" for key in KEYS[:2]]


def test_the_bounds_are_those_of_the_transport():
    assert (exchange.MOST_FILES, exchange.FILE_BYTES) == (8, 16 * 2**20)
    assert exchange.TOTAL_BYTES == 64 * 2**20


def test_an_export_replaces_the_one_before(trained, tmp_path):
    (tmp_path / "runs-7.zip").write_bytes(b"old")
    (tmp_path / "mine.txt").write_text("not ours to touch")
    assert export(trained, keys(trained), tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"runs-0.zip", "mine.txt"}


def test_where_there_is_nothing_to_pack_an_export_before_stays(trained, tmp_path):
    export(trained, keys(trained), tmp_path)
    (tmp_path / "runs-2023.zip").write_bytes(b"not ours")
    assert export(trained, [], tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"runs-0.zip", "runs-2023.zip"}


def test_a_full_disk_leaves_the_export_before(trained, tmp_path, monkeypatch):
    assert export(trained, keys(trained), tmp_path) == []
    before = (tmp_path / "runs-0.zip").read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exchange.checkpoint, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        export(trained, keys(trained), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["runs-0.zip"]
    assert (tmp_path / "runs-0.zip").read_bytes() == before


def test_a_checkpoint_that_grows_while_it_is_packed_is_packed_whole(tmp_path, elsewhere, monkeypatch):
    store = Store(tmp_path / "runs", tmp_path / "published")
    path = store.root / f"{KEYS[0]}.work" / "checkpoint.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"c" * 1000)
    read = Path.read_bytes

    def grown(self):
        if self == path:
            path.write_bytes(b"d" * 2000)
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", grown)
    assert export(store, KEYS[:1], tmp_path / "out") == []
    with zipfile.ZipFile(tmp_path / "out" / "runs-0.zip") as archive:
        assert archive.read(f"{KEYS[0]}.work/checkpoint.safetensors") == b"d" * 2000


# --- arriving -------------------------------------------------------------------------------------


def test_what_was_packed_arrives(trained, elsewhere, tmp_path, data, monkeypatch):
    monkeypatch.setattr(exchange, "FILE_BYTES", 40_000)  # several files
    assert export(trained, keys(trained), tmp_path / "out") == []
    assert len(members(tmp_path / "out")) > 1
    came = import_runs(elsewhere, tmp_path / "out", publish=False)
    assert [run.record for run in came] == [trained.find(SHORT, run.seed, data).record for run in came]
    assert sorted(keys(elsewhere)) == sorted(keys(trained)) and len(came) == 3
    for seed in range(3):
        run = elsewhere.find(SHORT, seed, data, weights=True)
        assert same(run.load_state(), trained.find(SHORT, seed, data).load_state())
        assert not run.published
    assert not elsewhere.published.exists()


def test_runs_that_are_here_stay_as_they_are_and_the_others_join(trained, elsewhere, tmp_path, data):
    mine = elsewhere.get(SHORT, 1, data, show=False)
    other = elsewhere.get(VIT, 0, data, show=False)
    stamp = mine.path.stat().st_mtime_ns, mine.path.stat().st_ino
    export(trained, keys(trained), tmp_path / "out")
    for _ in range(2):  # a second import changes nothing
        import_runs(elsewhere, tmp_path / "out", publish=False)
        assert (mine.path.stat().st_mtime_ns, mine.path.stat().st_ino) == stamp
        assert sorted(keys(elsewhere)) == sorted([*keys(trained), other.key])
    assert not [path for path in elsewhere.root.iterdir() if path.name.startswith(".")]


def test_imported_records_are_published_where_asked(trained, elsewhere, tmp_path):
    export(trained, keys(trained), tmp_path / "out")
    assert all(run.published for run in import_runs(elsewhere, tmp_path / "out", publish=True))
    assert {path.name for path in elsewhere.published.iterdir()} == {
        f"toy-short-s{run.seed}-{run.key}.json" for run in trained.all()
    }


def test_an_interrupted_run_is_continued_on_another_machine(elsewhere, tmp_path, data, monkeypatch):
    here = Store(tmp_path / "here", tmp_path / "published")
    whole = Store(tmp_path / "whole", tmp_path / "published").get(VIT, 0, data, show=False)
    with pytest.raises(OutOfTime):
        here.get(VIT, 0, data, deadline=time.monotonic(), show=False)
    export(here, [VIT.key(0, data.fingerprint)], tmp_path / "out")
    assert import_runs(elsewhere, tmp_path / "out", publish=False) == []
    begins = []
    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda job: begins.append(job.state.step) or run(job))
    finished = elsewhere.get(VIT, 0, data, show=False)
    assert begins == [1]
    assert same(finished.load_state(), whole.load_state())
    assert finished.record["history"] == whole.record["history"]


@pytest.mark.parametrize("first", [1, 2])
def test_of_two_checkpoints_the_further_one_is_kept(tmp_path, data, first):
    """Two borrowed hours on one run: whichever export comes last, no step is lost."""
    key = VIT.key(0, data.fingerprint)
    here, steps = Store(tmp_path / "here", tmp_path / "published"), []
    for hour in (1, 2):
        with pytest.raises(OutOfTime):
            here.get(VIT, 0, data, deadline=time.monotonic(), show=False)
        export(here, [key], tmp_path / f"hour{hour}")
        steps.append(exchange._step(here.root / f"{key}.work"))
    assert steps[0] < steps[1]
    elsewhere = Store(tmp_path / "elsewhere", tmp_path / "elsewhere-published")
    for hour in (first, 3 - first):
        import_runs(elsewhere, tmp_path / f"hour{hour}", publish=False)
    assert exchange._step(elsewhere.root / f"{key}.work") == steps[1]
    here.get(VIT, 0, data, show=False)
    export(here, [key], tmp_path / "end")
    import_runs(elsewhere, tmp_path / "end", publish=False)
    assert elsewhere.find(VIT, 0, data) and not (elsewhere.root / f"{key}.work").exists()


def test_a_record_without_weights_and_a_torn_checkpoint_cost_nothing(trained, tmp_path, data):
    """A run trained again for its weights is on its way here; another's checkpoint is broken."""
    under_way, torn = keys(trained)[:2]
    elsewhere = Store(tmp_path / "elsewhere", tmp_path / "elsewhere-published")
    for key in (under_way, torn):
        (elsewhere.root / f"{key}.work").mkdir(parents=True)
    checkpoint.save(elsewhere.root / f"{under_way}.work" / "checkpoint.safetensors", {}, {"step": 9999})
    (elsewhere.root / f"{torn}.work" / "checkpoint.safetensors").write_bytes(b"torn")
    assert exchange._step(elsewhere.root / f"{torn}.work") == -1
    bare = Store(tmp_path / "bare", tmp_path / "published")
    for key in keys(trained):
        (bare.root / key).mkdir(parents=True)
        shutil.copy(trained.root / key / "record.json", bare.root / key)
    export(bare, keys(trained), tmp_path / "out")
    assert len(import_runs(elsewhere, tmp_path / "out", publish=False)) == 3
    assert exchange._step(elsewhere.root / f"{under_way}.work") == 9999


def test_a_record_tells_all_the_machines_that_trained_it(tmp_path, data, monkeypatch):
    store = Store(tmp_path / "here", tmp_path / "published")
    with pytest.raises(OutOfTime):
        store.get(VIT, 0, data, deadline=time.monotonic(), show=False)
    there = device.describe(torch.device("cpu")) | {"name": "another", "dtype": "bfloat16", "threads": 7}
    monkeypatch.setattr("vitlib.state.describe", lambda _: there)
    machine = store.get(VIT, 0, data, show=False).machine
    assert machine["name"].endswith(" + another") and machine["dtype"].split(" + ")[-1] == "bfloat16"
    assert machine["threads"].endswith(" + 7") and machine["python"] == there["python"]


def test_weights_wait_for_their_record(trained, elsewhere, tmp_path, monkeypatch, data):
    monkeypatch.setattr(exchange, "FILE_BYTES", 40_000)
    export(trained, keys(trained), tmp_path / "out")
    (tmp_path / "part").mkdir()
    for path in sorted((tmp_path / "out").iterdir())[1:]:  # records are in the first
        shutil.copy(path, tmp_path / "part")
    assert import_runs(elsewhere, tmp_path / "part", publish=False) == []
    assert elsewhere.all() == [] and not [*elsewhere.root.glob("0*")]
    assert len(import_runs(elsewhere, tmp_path / "out", publish=False)) == 3
    assert elsewhere.find(SHORT, 0, data, weights=True)


# --- damage and tricks ----------------------------------------------------------------------------


def pack(path, contents, sums=None):
    """Write a zip as an export would, of any names."""
    path.parent.mkdir(exist_ok=True)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()} | (sums or {})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        archive.writestr("manifest.json", json.dumps(sums))


def refuse(store, folder, message):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        import_runs(store, folder, publish=True)
    assert sorted(folder.parent.rglob("*")) == before  # nothing was taken
    return str(error.value)


def test_flipped_bits_are_found_or_harmless_and_no_import_is_half_taken(trained, tmp_path):
    export(trained, keys(trained), tmp_path / "out")
    path = tmp_path / "out" / "runs-0.zip"
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    whereabouts = [chance.randrange(len(whole)) for _ in range(20)]
    whereabouts += range(len(whole) - 1000, len(whole), 17)  # the zip's directory: nothing checks its dates
    for position in whereabouts:
        content = bytearray(whole)
        content[position] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        store = Store(tmp_path / f"store-{position}", tmp_path / "published")
        try:
            import_runs(store, tmp_path / "out", publish=False)
        except UserError as error:
            assert str(path) in str(error) and not store.root.exists()
            refused += 1
        else:
            for key in keys(trained):
                for name in ("record.json", "weights.safetensors"):
                    assert (store.root / key / name).read_bytes() == (trained.root / key / name).read_bytes()
    assert refused > 25


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_cut_off_is_found(trained, elsewhere, tmp_path, share):
    export(trained, keys(trained), tmp_path / "out")
    path = tmp_path / "out" / "runs-0.zip"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refuse(elsewhere, tmp_path / "out", "已损坏")


TRICKS = [
    "/outside.json",
    "../../outside.json",
    "../outside",
    f"{KEYS[0]}/../outside.json",
    f"{KEYS[0]}/evil.py",
    f"{KEYS[0]}/sub/record.json",
    f"{KEYS[0]}.work/record.json",
    "locks/record.json",
    "C:\\outside.json",
    f"{KEYS[0]}\\record.json",
    f"{'A' * 16}/record.json",
    f"{KEYS[0]}/record.json\n",
    f"{KEYS[0]}/record.json.0of99999999",
    f"{KEYS[0]}/record.json.8of8",
    "",
]


@pytest.mark.parametrize("name", TRICKS)
def test_other_names_than_a_runs_are_refused(elsewhere, tmp_path, name):
    inner = name.replace("/outside", f"{tmp_path}/outside", 1) if name.startswith("/") else name
    pack(tmp_path / "out" / "runs-0.zip", {inner or "x": b"{}"}, {inner: hashlib.sha256(b"{}").hexdigest()})
    refuse(elsewhere, tmp_path / "out", "不该有的文件名")


def test_a_zip_bomb_is_refused_unread(elsewhere, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "FILE_BYTES", 1000)
    pack(tmp_path / "out" / "runs-0.zip", {f"{KEYS[0]}/record.json": b" " * 1001})
    refuse(elsewhere, tmp_path / "out", "过大")


@pytest.mark.parametrize("manifest", ["[1]", "{}x", "7", '{"a": {}}', '{"0000000000000000/record.json": "00"}'])
def test_a_wrong_manifest_is_refused(elsewhere, tmp_path, manifest):
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / "out" / "runs-0.zip", "w") as archive:
        archive.writestr(f"{KEYS[0]}/record.json", "{}")
        archive.writestr("manifest.json", manifest)
    refuse(elsewhere, tmp_path / "out", "已损坏")


def test_a_zip_without_a_manifest_is_refused(elsewhere, tmp_path):
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / "out" / "runs-0.zip", "w") as archive:
        archive.writestr(f"{KEYS[0]}/record.json", "{}")
    refuse(elsewhere, tmp_path / "out", "manifest")


def test_a_record_must_be_the_one_its_folder_names(trained, elsewhere, tmp_path):
    record = trained.all()[0].path.read_bytes()
    pack(tmp_path / "out" / "runs-0.zip", {f"{KEYS[0]}/record.json": record})
    refuse(elsewhere, tmp_path / "out", "另一次运行")
    changed = json.loads(record) | {"seed": 99}
    key = changed["key"]
    pack(tmp_path / "out" / "runs-0.zip", {f"{key}/record.json": json.dumps(changed).encode()})
    refuse(elsewhere, tmp_path / "out", "不符")
    for wrong in ({"name": f"{tmp_path}/outside"}, {"name": "../outside"}, {"seed": "0/../x"}):
        changed = json.loads(record) | wrong
        key = changed["key"]
        pack(tmp_path / "out" / "runs-0.zip", {f"{key}/record.json": json.dumps(changed).encode()})
        refuse(elsewhere, tmp_path / "out", "读不出来")


def test_a_folder_without_an_export_is_refused(elsewhere, tmp_path):
    (tmp_path / "out").mkdir()
    refuse(elsewhere, tmp_path / "out", r"没有 runs-\*\.zip")
    refuse(elsewhere, tmp_path / "out" / "nowhere", r"没有 runs-\*\.zip")
