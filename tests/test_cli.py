"""The command line: Chinese help, one JSON document, one sentence for each error, and what each command does."""

import io
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from toy import CPU, PLAIN, VIT

from vitlib import __version__, checkpoint, cli, evaluate, plans, recipes, store, weights
from vitlib.data import Dataset, TestSet, TrainSet, load, load_images
from vitlib.data.names import CIFAR10_CHINESE, CIFAR10_ENGLISH
from vitlib.engine import Trainer
from vitlib.plans import Entry, Profile
from vitlib.recipe import Recipe
from vitlib.state import build_model
from vitlib.weights import load_trained, save_weights

COMMANDS = ("data", "train", "sweep", "runs", "evaluate", "predict", "bench", "speedrun", "export", "report")
MODEL = {"patch_size": 8, "d_model": 8, "num_heads": 2, "num_layers": 1, "ffn_hidden_channels": 8}
TINY = PLAIN.but(name="tiny", model_args=MODEL, epochs=2, batch_size=10)
CHINESE = re.compile("[\u4e00-\u9fff]")


def paint(folder, names, images, side=20, seed=0):
    """Write PNGs of noise in which the class shows; return the folder."""
    source = torch.Generator().manual_seed(seed)
    for c, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(images):
            pixels = torch.randint(0, 100, (side, side, 3), generator=source, dtype=torch.uint8)
            pixels[..., c % 3] += 100
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("pictures"), ["红", "绿", "蓝"], 15)


@pytest.fixture(autouse=True)
def small_world(tmp_path, monkeypatch):
    """A recipe, a plan and a profile that take no time, and folders for whatever is written."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    monkeypatch.setitem(plans.SECTIONS, "9.9", [Entry("甲", TINY, 1), Entry("乙", VIT.but(name="other"), 2)])
    monkeypatch.setitem(plans.PROFILES, "tiny", Profile("tiny", 30, 9, (("vit", 1),), seeds=1))
    monkeypatch.setenv("CIFAR_VIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CIFAR_VIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "results_dir", lambda: tmp_path / "results")
    monkeypatch.setattr(weights, "weights_dir", lambda: tmp_path / "weights")
    monkeypatch.setattr("vitlib.sweep.calibrate", lambda device: 1e9)


@pytest.fixture
def vitlib(capsys):
    """Run a command that succeeds; return its standard output."""

    def run(*arguments):
        capsys.readouterr()
        assert cli.main([*map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def document(vitlib):
    """Run a command with --json; its standard output must be one JSON document and nothing else."""

    def run(*arguments):
        out = vitlib(*arguments, "--json")
        assert out.endswith("\n") and out.count("\n") == 1
        return json.loads(out)

    return run


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error there")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_has_enough_is_no_error(tmp_path, more):
    environment = os.environ | {"CIFAR_VIT_RUNS": str(tmp_path)}
    command = [sys.executable, "-m", "vitlib", "runs", *more]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # before anything is written
    assert process.stderr.read() == "" and process.wait() == 0


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_is_chinese(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "用法：vitlib" in text and "显示这份帮助" in text
    assert not re.search("usage|options|positional|show this|arguments|default", text)
    assert not re.search("^\\S+:$", text, re.MULTILINE)  # headings end in a full-width colon
    # each subcommand, argument or option is followed by what it is for, perhaps on the next line
    entries = re.findall(r"^ {2,4}(-\S.*?|\w+)(?:  +|\n +)(\S.*)$", text, re.MULTILINE)
    assert len(entries) >= (9 if not command else 2)
    for name, purpose in entries:
        assert CHINESE.search(purpose), name


def test_every_command_of_the_issue_is_there(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert listed == [*COMMANDS]


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"vitlib {__version__}\n"


def shell(*command, **environment):
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | environment,
        timeout=300,
    )


def test_the_console_command_is_the_module():
    script = Path(sys.executable).with_name("vitlib")
    if not script.exists():
        pytest.skip("the package is not installed as a command here")
    for arguments in (["--help"], ["train", "--help"], ["fly"]):
        one, other = shell(str(script), *arguments), shell(sys.executable, "-m", "vitlib", *arguments)
        assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)
        assert one.returncode == (2 if arguments == ["fly"] else 0)


def test_help_does_not_wait_for_torch():
    code = "import sys; from vitlib.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    assert shell(sys.executable, "-c", code).stdout == "False\n"


def test_a_terminal_without_chinese_gets_no_trace():
    done = shell(sys.executable, "-m", "vitlib", "--help", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and "--version" in done.stdout and not done.stderr


# --- errors ---------------------------------------------------------------------------------------

WRONG = [
    ("", "缺少参数：子命令"),
    ("fly", r"'fly'.*可选"),
    ("train", "缺少参数：配方"),
    ("train tiny --speed 9", "不认识的参数：--speed 9"),
    ("train tiny --seed x", "--seed 的值 'x' 不合要求"),
    ("train tiny --seed", "--seed 后面缺少值"),
    ("train tny", r"tny 的配方，是不是想写 tiny"),
    ("train tiny --data DATA --images 0", "--images 的值 '0' 不合要求"),
    ("sweep 9.9 --seeds 0", "--seeds 的值 '0' 不合要求"),
    ("sweep 9.9 --tier -1", "--tier"),
    ("sweep 9.9 --workers 0", "--workers"),
    ("train tiny --data DATA --epochs -3", "epochs=-3"),
    ("train tiny --data DATA --images 1", "1 张"),
    ("train tiny --data HERE/nowhere", "nowhere"),
    ("train tiny --data nothing", "nothing"),
    ("train tiny --data DATA --save FILE/w.safetensors", "不能写入"),
    ("train tiny --data DATA --half", "同时给出 --save"),
    ("train tiny --data DATA --save HERE/taken.safetensors", "已有的文件夹"),
    ("train tiny --data DATA --save HERE/w.pt", "以 .safetensors 结尾"),
    ("export light --data DATA --out FILE/light.onnx", "不能写入"),
    ("train tiny --data DATA --json=1", "--json 不带值"),
    ("sweep 7.7 --profile tiny --data DATA", r"7\.7.*2\.1"),
    ("sweep 9.9 --profile huge --data DATA", r"huge.*quick"),
    ("sweep 9.9 --profile tiny --data DATA --budget soon", r"soon.*9m"),
    ("sweep 9.9 --profile tiny --data DATA --budget -1m", "--budget"),
    ("sweep 9.9 --profile tiny --data DATA --export FILE/out", "不能写入"),
    ("runs import", "sweep --export"),
    ("runs import HERE/nowhere", "nowhere"),
    ("runs export", "'export'"),
    ("data HERE/nowhere", "nowhere"),
    ("data FILE", "既不是文件夹，也不是完整的 zip"),
    ("evaluate nobody --data DATA", "nobody"),
    ("evaluate FILE --data DATA", "不是完好的 safetensors 文件"),
    ("evaluate FILE", "缺少参数：--data"),
    ("predict", "缺少参数：图像"),
    ("predict FILE", "best"),
    ("report --profile huge --data DATA", "huge"),
    ("report --profile published --data DATA --out HERE/out", "已发布"),
    ("report --profile published --publish", "去掉 --publish"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_an_error_is_one_chinese_sentence_on_standard_error(line, message, pictures, tmp_path, capsys):
    (tmp_path / "file.txt").write_text("not what you think")
    (tmp_path / "taken.safetensors").mkdir()
    places = {"DATA": pictures, "HERE": tmp_path, "FILE": tmp_path / "file.txt"}
    arguments = [
        re.sub("^(DATA|HERE|FILE)", lambda m: str(places[m[1]]), word).replace("/", os.sep) for word in line.split()
    ]
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    errors = [text for text in captured.err.splitlines() if text.startswith("错误：")]
    assert len(errors) == 1 and re.search(message, errors[0]), captured.err
    assert CHINESE.search(errors[0]) and errors[0][-1] in "。"


def test_nothing_is_trained_for_a_place_that_cannot_be_written(pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "file.txt").write_text("no folder")
    monkeypatch.setattr("vitlib.store.Trainer", None)
    monkeypatch.setattr("benchmarks.bench.run", None)
    place = ["--data", str(pictures), "--save", str(tmp_path / "file.txt" / "w.safetensors")]
    assert cli.main(["train", "tiny", *place]) == 2
    for command in ("bench", "speedrun"):
        assert cli.main([command, "--data", str(pictures), "--out", str(tmp_path / "file.txt" / "a" / "b.json")]) == 2
    assert capsys.readouterr().err.count("不能写入") == 3 and not (tmp_path / "runs").exists()


def test_what_is_not_installed_is_named_and_a_fault_of_ours_is_not_hidden(monkeypatch, capsys, pictures):
    def lack(name):
        def load(*args, **kwargs):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr("vitlib.data.load", load)
        return cli.main(["data", str(pictures)])

    assert lack("onnx") == 2 and "onnx 没有安装" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        lack("vitlib.nothing")


def test_a_data_folder_that_the_variable_names_wrongly_names_the_variable(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CIFAR_VIT_DATA", str(tmp_path / "nowhere"))
    assert cli.main(["data"]) == 2
    assert "CIFAR_VIT_DATA" in (told := capsys.readouterr().err) and "nowhere" in told


def test_an_interrupt_is_no_trace(monkeypatch, capsys, pictures):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitlib.data.load", interrupt)
    assert cli.main(["data", str(pictures)]) == 130
    assert "已中断" in capsys.readouterr().err


# --- data, train, runs, sweep ---------------------------------------------------------------------


def test_data_describes(document, vitlib, pictures):
    facts = document("data", pictures)
    assert (facts["name"], facts["train_images"], facts["test_images"]) == ("folder", 36, 9)
    assert [row["name"] for row in facts["classes"]] == sorted(["红", "绿", "蓝"])
    assert facts["fingerprint"] == load(str(pictures)).fingerprint
    text = vitlib("data", pictures)
    assert facts["fingerprint"] in text and "红" in text and "36" in text


def test_unreadable_images_are_skipped_on_request_and_listed(tmp_path, pictures, capsys):
    folder = paint(tmp_path / "mixed", ["a", "b"], 5)
    (folder / "a" / "broken.png").write_bytes(b"no image")
    assert cli.main(["data", str(folder)]) == 2
    assert "broken.png" in capsys.readouterr().err
    assert cli.main(["data", str(folder), "--skip-unreadable", "--json"]) == 0
    captured = capsys.readouterr()
    assert "broken.png" in json.loads(captured.out)["skipped"][0] and "broken.png" in captured.err


SUMMARY = {"recipe", "seed", "data", "accuracy", "params", "flops", "epochs", "device", "published"}


def test_train_then_runs(document, vitlib, pictures, tmp_path):
    run = document("train", "tiny", "--data", pictures, "--seed", 4, "--epochs", 3)
    assert set(run) >= SUMMARY
    assert (run["recipe"], run["seed"], run["data"], run["epochs"]) == ("tiny", 4, "folder", 3)
    assert 0 <= run["accuracy"] <= 1 and run["params"] > 1000 and run["published"] is False
    assert document("train", "tiny", "--data", pictures, "--seed", 4, "--epochs", 3) == run  # not trained again
    listed = document("runs")
    assert listed == {"runs": [run]}
    assert f"{100 * run['accuracy']:.2f} %" in (told := vitlib("runs")) and "种子 4" in told and "folder 33 张" in told


def test_training_says_on_what(pictures, capsys):
    assert cli.main(["train", "tiny", "--data", str(pictures), "--images", "9", "--json"]) == 0
    captured = capsys.readouterr()
    assert "数据：自备图像" in captured.err and "抽取的子集" in captured.err and json.loads(captured.out)


def test_no_runs_are_an_empty_list(document):
    assert document("runs") == {"runs": []}


def test_train_on_fewer_images_is_another_run_that_says_so(document, pictures):
    run = document("train", "tiny", "--data", pictures, "--images", 21)
    assert run["train_images"] == 21 - 3  # a tenth of each class is for validation, at least one image
    assert document("train", "tiny", "--data", pictures)["key"] != run["key"]


def test_trained_weights_can_be_saved_and_used(document, pictures, tmp_path):
    run = document("train", "tiny", "--data", pictures, "--save", tmp_path / "mine.safetensors")
    result = document("evaluate", tmp_path / "mine.safetensors", "--data", pictures)
    assert result["images"] == 45 and set(result["per_class"]) == {"红", "绿", "蓝"}
    trained = load_trained(str(tmp_path / "mine.safetensors"))
    assert trained.story["key"] == run["key"] and trained.recipe.name == "tiny"


def test_saved_weights_may_be_read_by_whom_other_files_may(document, pictures, tmp_path):
    (tmp_path / "other").touch()
    document("train", "tiny", "--data", pictures, "--save", tmp_path / "new" / "mine.safetensors")
    modes = [path.stat().st_mode for path in (tmp_path / "new" / "mine.safetensors", tmp_path / "other")]
    assert modes[0] == modes[1]


def test_weights_of_another_version_are_refused_by_name(document, pictures, tmp_path, capsys):
    path = tmp_path / "mine.safetensors"
    document("train", "tiny", "--data", pictures, "--save", path)
    tensors, story = checkpoint.load(path)
    for recipe in ("x", story["recipe"] | {"future": 1}):
        checkpoint.save(path, tensors, story | {"recipe": recipe})
        assert cli.main(["evaluate", str(path), "--data", str(pictures)]) == 2
        assert "mine.safetensors" in capsys.readouterr().err


def test_sweep_trains_exports_and_imports(document, vitlib, pictures, tmp_path, monkeypatch):
    sweep = ("sweep", "9.9", "--profile", "tiny", "--data", pictures)
    prices = document(*sweep, "--dry-run")
    assert [(job["recipe"], job["done"]) for job in prices["jobs"]] == [("tiny", False), ("other", False)]
    assert [tier["missing"] for tier in prices["tiers"]] == [1, 1]
    assert document("runs") == {"runs": []}
    stopped = document(*sweep, "--budget", "0s")
    assert stopped == {"runs": [], "left": ["tiny（种子 0）", "other（种子 0）"], "not_exported": []}
    first = document(*sweep, "--tier", 1)
    assert [run["recipe"] for run in first["runs"]] == ["tiny"]
    done = document(*sweep, "--export", tmp_path / "out", "--seeds", 2)
    assert [(run["recipe"], run["seed"]) for run in done["runs"]] == [
        ("tiny", 0), ("tiny", 1), ("other", 0), ("other", 1),
    ]  # fmt: skip
    assert done["left"] == done["not_exported"] == [] and done["runs"][0] == first["runs"][0]
    assert "已有" in vitlib(*sweep, "--dry-run")
    monkeypatch.setenv("CIFAR_VIT_RUNS", str(tmp_path / "another machine"))
    came = document("runs", "import", tmp_path / "out")["runs"]
    assert sorted(run["key"] for run in came) == sorted(run["key"] for run in done["runs"])
    assert all(run["published"] for run in came) and len([*(tmp_path / "results").iterdir()]) == 4


def test_an_interrupted_pre_training_travels_with_the_export(document, pictures, tmp_path, monkeypatch):
    start = VIT.but(name="start", epochs=9)
    tuned = TINY.but(name="tuned", model_args=dict(start.model_args), init_from=start)
    monkeypatch.setitem(plans.SECTIONS, "9.9", [Entry("甲", tuned, 1)])
    monkeypatch.setitem(plans.PROFILES, "whole", Profile("whole"))
    monkeypatch.setattr("vitlib.sweep.time", Clock(after=2))
    out = document(
        "sweep", "9.9", "--profile", "whole", "--seeds", 1, "--data", pictures,
        "--budget", "0.01s", "--export", tmp_path / "out",
    )  # fmt: skip
    assert out["left"] == ["tuned（种子 0）"]
    with zipfile.ZipFile(tmp_path / "out" / "runs-0.zip") as archive:
        key = start.key(0, load(str(pictures)).fingerprint)
        assert f"{key}.work/checkpoint.safetensors" in archive.namelist()


def test_what_is_done_is_exported_also_when_a_later_job_raises(vitlib, pictures, tmp_path, monkeypatch):
    train, trained = Trainer.run, []

    def once(job):
        if trained:
            raise RuntimeError("CUDA error: out of memory")
        trained.append(job.recipe.name)
        return train(job)

    monkeypatch.setattr(Trainer, "run", once)
    with pytest.raises(RuntimeError, match="out of memory"):
        vitlib("sweep", "9.9", "--profile", "tiny", "--data", pictures, "--export", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out" / "runs-0.zip") as archive:
        records = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith("record.json")]
    assert [record["name"] for record in records] == trained == ["tiny"]


class Clock:
    """A clock for the sweep alone, which lets it begin a run before its budget is over."""

    def __init__(self, after):
        self.calls, self.after = 0, after

    def time(self):
        self.calls += 1
        return time.time() - (1000 if self.calls >= self.after else 0)

    def monotonic(self):
        return time.monotonic() - 1000


def test_publishing_puts_records_with_the_project(document, pictures, tmp_path):
    document("sweep", "9.9", "--profile", "tiny", "--tier", 1, "--data", pictures, "--publish")
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.startswith("tiny-s0-") and document("runs")["runs"][0]["published"]


# --- evaluate, predict ----------------------------------------------------------------------------


@pytest.fixture
def cifar_model(tmp_path):
    """Weights of an untrained model of CIFAR-10's classes at 16 x 16 pixels, published under the name best."""
    recipe = Recipe(name="best", model_args=MODEL)
    torch.manual_seed(0)
    model = build_model(recipe, 10, 16).eval()
    with torch.no_grad():
        model.head.weight.normal_(std=3.0)  # so that not all images look alike to it
    data = {"class_names": CIFAR10_CHINESE, "image_size": 16, "provenance": "无"}
    facts = {"key": "0" * 16, "name": "best", "seed": 0, "recipe": recipe.spec(), "accuracy": 0.1}
    record = facts | {"params": 1, "flops": 1, "data": data}
    (tmp_path / "weights").mkdir()
    save_weights(tmp_path / "weights" / "best.safetensors", model.state_dict(), record)
    return model


def test_a_model_is_evaluated_on_the_test_images_of_a_named_data_set(cifar_model, monkeypatch, capsys):
    part = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8), torch.arange(20) % 10
    for names in (CIFAR10_CHINESE, tuple("abcdefghij")):
        made = Dataset.of("course", TrainSet(*part), TestSet(*part), names, "made up")
        monkeypatch.setattr("vitlib.data.load", lambda source, made=made: made)
        status = cli.main(["evaluate", "best", "--data", "course", "--json"])
        captured = capsys.readouterr()
        if names == CIFAR10_CHINESE:
            assert status == 0 and json.loads(captured.out)["images"] == 20
        else:
            assert status == 2 and "类别或图像大小" in captured.err


NAMINGS = {"number": [*map(str, range(10))], "English": CIFAR10_ENGLISH, "Chinese": CIFAR10_CHINESE}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_evaluate_reads_any_naming_from_folder_or_zip(naming, packed, cifar_model, document, tmp_path):
    folder = paint(tmp_path / "photos", NAMINGS[naming], 4)
    if packed:
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for path in folder.rglob("*.png"):
                archive.write(path, path.relative_to(tmp_path))
    model = "best" if packed else tmp_path / "weights" / "best.safetensors"
    result = document("evaluate", model, "--data", tmp_path / "photos.zip" if packed else folder)
    images = load_images(folder, CIFAR10_CHINESE, image_size=16)
    correct = evaluate.predict(cifar_model, images.images, device=CPU).argmax(1) == images.labels
    assert set(result) == {"accuracy", "images", "per_class"} and result["images"] == 40
    assert result["accuracy"] == pytest.approx(float(correct.float().mean())) and 0 < result["accuracy"] < 1
    for c, name in enumerate(CIFAR10_CHINESE):
        assert result["per_class"][name] == pytest.approx(float(correct[images.labels == c].float().mean()))


def test_evaluate_on_some_of_the_classes(cifar_model, document, vitlib, tmp_path):
    folder = paint(tmp_path / "photos", ["猫", "dog"], 3)
    result = document("evaluate", "best", "--data", folder)
    assert result["images"] == 6 and sum(value is not None for value in result["per_class"].values()) == 2
    assert "没有图像" in vitlib("evaluate", "best", "--data", folder)


def test_predict_names_each_image(cifar_model, document, vitlib, tmp_path):
    folder = paint(tmp_path / "photos", ["猫"], 3, side=50)
    files = sorted((folder / "猫").iterdir())
    rows = document("predict", *files)["predictions"]
    images = load_images(folder, CIFAR10_CHINESE, image_size=16).images
    expected = evaluate.predict(cifar_model, images, device=CPU).softmax(1)
    for row, path, probabilities in zip(rows, files, expected, strict=True):
        assert row["image"] == str(path) and row["class"] == CIFAR10_CHINESE[int(probabilities.argmax())]
        assert row["confidence"] == pytest.approx(float(probabilities.max()), abs=0.02)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert vitlib("predict", files[0], "--model", "best").startswith(f"{files[0]}\t{rows[0]['class']}\t")


@pytest.mark.parametrize(("name", "content"), [("no.png", None), ("text.png", b"text"), ("folder", "dir")])
def test_predict_refuses_what_is_no_image(cifar_model, tmp_path, capsys, name, content):
    if content == "dir":
        (tmp_path / name).mkdir()
    elif content:
        (tmp_path / name).write_bytes(content)
    assert cli.main(["predict", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("错误：") and name in error and error.count("\n") == 1


def test_predict_tells_the_readable_images_beside_those_that_are_not(cifar_model, tmp_path, capsys):
    (good, other) = sorted((paint(tmp_path / "photos", ["猫"], 2) / "猫").iterdir())
    (tmp_path / "text.png").write_bytes(b"text")
    files = [str(good), str(tmp_path / "text.png"), str(other), str(tmp_path / "no.png")]
    assert cli.main(["predict", *files, "--json"]) == 2
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [row["image"] for row in told["predictions"]] == [str(good), str(other)]
    assert ["text.png" in told["errors"][0], "no.png" in told["errors"][1], len(told["errors"])] == [True, True, 2]
    assert said.err.count("错误：") == 2
    assert cli.main(["predict", *files]) == 2
    assert capsys.readouterr().out.count("\n") == 2


# --- for real -------------------------------------------------------------------------------------


def test_as_a_process_it_prints_one_document_and_nothing_else(pictures, tmp_path):
    done = shell(sys.executable, "-m", "vitlib", "data", str(pictures), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train_images"] == 36


def test_json_survives_a_terminal_without_chinese(document, pictures, monkeypatch):
    expected = document("data", pictures)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["data", str(pictures), "--json"]) == 0
    terminal.flush()
    assert json.loads(terminal.buffer.getvalue()) == expected and "红" in str(expected)
