"""Installations: the wheel in a fresh environment, away from the checkout, and a set-up that is cut off."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """The scripts' folder of a fresh environment with the wheel, which sees this environment's other packages."""
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not followed
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    return python.parent


def test_the_wheel_carries_what_the_package_needs_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = run("git", "ls-files", "-z", "vitlib", "labreport", "notebooks", "report", cwd=ROOT).split("\0")
    rendered = {"report/report.html", "report/report.pdf"}
    expected = {
        name if name.startswith(("vitlib/", "labreport/")) else f"vitlib/_share/{name}"
        for name in tracked
        if name and name not in rendered
    }
    carried = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert expected <= carried
    assert not any(name.endswith(("report.html", "report.pdf", ".jpg", ".png")) for name in carried)
    assert {name.split("/")[0] for name in carried} == {"vitlib", "labreport"}
    assert wheel.stat().st_size < 24 * 2**20


def test_the_installed_package_finds_its_own_files(fresh, tmp_path):
    code = """
import json, vitlib
from vitlib import paths
print(json.dumps([vitlib.__file__, str(paths.checkout()), sorted(p.name for p in paths.share("notebooks").glob("*.ipynb")),
                  (paths.share("report") / "members.yml").is_file(), str(paths.build_dir())]))
"""
    file, checkout, notebooks, members, build = json.loads(run(fresh / "python", "-c", code, cwd=tmp_path))
    assert Path(file).is_relative_to(fresh.parent) and checkout == "None"
    assert notebooks == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb")) and notebooks
    assert members and build == str(tmp_path / "build")


def test_the_command_predicts_from_another_folder(fresh, tmp_path):
    assert "子命令" in run(fresh / "vitlib", "--help", cwd=tmp_path)
    make_inputs = """
from PIL import Image
from vitlib import checkpoint
from vitlib.recipes import RECIPES
from vitlib.state import build_model
from vitlib.weights import save_weights

Image.new("RGB", (40, 30), (200, 30, 30)).save("图 1.png")
recipe = RECIPES["vit"].but(model_args={"d_model": 16, "num_heads": 2, "num_layers": 1, "ffn_hidden_channels": 16})
names = ["飞机", "汽车", "鸟", "猫", "鹿", "狗", "青蛙", "马", "船", "卡车"]
data = {"class_names": names, "image_size": 32, "provenance": "无"}
story = {"key": "k", "name": "vit", "seed": 0, "recipe": recipe.spec(), "accuracy": 0.1, "params": 1, "flops": 1, "data": data}
from pathlib import Path
save_weights(Path("tiny.safetensors"), build_model(recipe, 10, 32).state_dict(), story)
"""
    run(fresh / "python", "-c", make_inputs, cwd=tmp_path)
    published = [path.stem for path in (ROOT / "report/weights").glob("*.safetensors")]
    environment = {**os.environ, "CIFAR_VIT_DEVICE": "cpu"}
    for model in ["tiny.safetensors", *published]:
        command = [fresh / "vitlib", "predict", "图 1.png", "--model", model, "--json"]
        (row,) = json.loads(run(*command, cwd=tmp_path, env=environment))["predictions"]
        assert row["image"] == "图 1.png" and len(row["probabilities"]) == 10
        assert abs(sum(row["probabilities"].values()) - 1) < 1e-5
        assert row["confidence"] == max(row["probabilities"].values()) == row["probabilities"][row["class"]]


def test_a_killed_set_up_is_repaired(tmp_path):
    """The real thing with a small lock: killed while it installs, it starts over; then there is nothing to do."""
    root = tmp_path / "a folder with spaces"
    (root / "vitlib").mkdir(parents=True)
    shutil.copy(ROOT / "tasks.py", root)
    (root / "requirements.lock").write_text("einops==0.8.2\n")
    (root / "vitlib/__init__.py").touch()
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "x"\nversion = "1"\n[tool.hatch.build.targets.wheel]\npackages = ["vitlib"]\n'
    )
    command, stamp = [sys.executable, "tasks.py", "setup"], root / ".venv/installed.txt"
    first = subprocess.Popen(command, cwd=root, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not stamp.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert stamp.read_text() == "unfinished"
    second = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "创建虚拟环境" in second.stdout and "环境已就绪" in second.stdout
    third = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert third.stdout == ""
    python = root / ".venv/bin/python"
    subprocess.run([python, "-c", "import einops, vitlib"], cwd=tmp_path, check=True)
