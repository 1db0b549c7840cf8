"""The tasks: two commands on a bare machine, and what they do when something is missing or cut off."""

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tasks(monkeypatch, tmp_path):
    """tasks.py for a project in a temporary folder, with its commands recorded instead of run."""
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for variable in ("PROFILE", "DATA", "CHROME", "CIFAR_VIT_DATA", "PLAYWRIGHT_BROWSERS_PATH"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "requirements.lock").write_text("einops==0.8.2\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    venv = tmp_path / ".venv"
    python = venv / "bin/python"
    for name, value in {
        "ROOT": tmp_path, "BUILD": tmp_path / "build", "VENV": venv, "PYTHON": python,
        "STAMP": venv / "installed.txt", "OS_RELEASE": tmp_path / "os-release", "IS_ROOT": False,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    module.commands = []

    def run(*command, env=None, cwd=None):
        module.commands.append((" ".join(map(str, command)), env or {}))
        if "--clear" in command:
            shutil.rmtree(venv, ignore_errors=True)
            python.parent.mkdir(parents=True)
            python.touch()

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "succeeds", lambda *command: Path(command[0]).exists())
    monkeypatch.setattr(module, "uv_environment", lambda pip: {})
    return module


def commands(tasks):
    """Return what has been run since the last call."""
    taken, tasks.commands[:] = list(tasks.commands), []
    return [command for command, _ in taken]


@pytest.fixture
def apt(tasks, monkeypatch):
    """A machine where we are root and apt-get works; yields the packages that were asked for."""
    installed = []
    monkeypatch.setattr(tasks, "can_apt", lambda: True)
    monkeypatch.setattr(tasks, "apt_install", lambda package: installed.append(package) or True)
    return installed


# ---------------------------------------------------------------- set-up


def test_set_up_installs_the_lock_once(tasks):
    tasks.setup()
    venv, uv, install = commands(tasks)
    assert venv.endswith(f"-m venv --clear {tasks.VENV}")
    assert uv.endswith(f"install --quiet {tasks.UV}")
    assert f"uv pip install --python {tasks.PYTHON} -r {tasks.ROOT / 'requirements.lock'} -e" in install
    tasks.setup()
    assert commands(tasks) == []


def test_an_interrupted_set_up_starts_over(tasks, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "install", interrupted)
        assert tasks.main(["setup"]) == 130
    commands(tasks)
    tasks.setup()
    assert "--clear" in commands(tasks)[0]


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_change_of_the_dependencies_installs_on_top(tasks, name):
    tasks.setup()
    commands(tasks)
    (tasks.ROOT / name).write_text("# changed\n")
    tasks.setup()
    again = commands(tasks)
    assert again and not any("--clear" in command for command in again)


def test_an_update_that_fails_leaves_what_worked_before(tasks, monkeypatch):
    """Without a network nothing could be installed anew."""
    tasks.setup()
    (tasks.ROOT / "requirements.lock").write_text("# changed\n")
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "install", lambda: (_ for _ in ()).throw(subprocess.CalledProcessError(1, "uv")))
        assert tasks.main(["setup"]) == 1
    commands(tasks)
    tasks.setup()
    again = commands(tasks)
    assert again and not any("--clear" in command for command in again)


def test_a_moved_or_broken_environment_is_seen(tasks, monkeypatch):
    tasks.setup()
    before = tasks.fingerprint()
    tasks.PYTHON.unlink()
    commands(tasks)
    tasks.setup()
    assert "--clear" in commands(tasks)[0]
    moved = tasks.ROOT / "moved"
    moved.mkdir()
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(tasks.ROOT / name, moved)
    monkeypatch.setattr(tasks, "ROOT", moved)
    assert tasks.fingerprint() != before


def test_without_ensurepip_the_package_is_named(tasks, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "succeeds", lambda *command: False)
    monkeypatch.setattr(tasks.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(SystemExit) as stopped:
        tasks.setup()
    version = ".".join(map(str, sys.version_info[:2]))
    assert stopped.value.code == 2
    assert f"apt-get install python{version}-venv" in capsys.readouterr().err
    assert commands(tasks) == []


def test_root_on_debian_gets_ensurepip_installed(tasks, apt, monkeypatch):
    monkeypatch.setattr(tasks, "succeeds", lambda *command: bool(apt))
    tasks.make_venv()
    assert apt == ["python{}.{}-venv".format(*sys.version_info)]
    assert "--clear" in commands(tasks)[0]


def test_pip_takes_over_where_uv_fails(tasks, monkeypatch):
    def run(*command, env=None):
        tasks.commands.append((" ".join(map(str, command)), env))
        if "uv" in command:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(tasks, "run", run)
    tasks.install()
    assert commands(tasks)[-1].startswith(f"{tasks.PYTHON} -m pip --disable-pip-version-check install -r")


def test_uv_gets_the_mirror_that_pip_was_given(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    (tmp_path / "pip.py").write_text("print(\"global.index-url='https://mirror.example/simple'\\nglobal.timeout='9'\")")
    for variable in ("UV_DEFAULT_INDEX", "SSL_CERT_FILE"):
        monkeypatch.delenv(variable, raising=False)
    pip = [sys.executable, tmp_path / "pip.py"]
    given = tasks.uv_environment(pip)
    assert given["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert "SSL_CERT_FILE" not in given and given["UV_COMPILE_BYTECODE"] == "1"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://chosen.example/simple")
    assert tasks.uv_environment(pip)["UV_DEFAULT_INDEX"] == "https://chosen.example/simple"


def test_an_old_python_is_told_so_or_replaced(tasks, monkeypatch, capsys):
    ast.parse((ROOT / "tasks.py").read_text(), feature_version=(3, 7))  # it must start there to say so
    monkeypatch.setattr(tasks.sys, "version_info", (3, 10, 1))
    monkeypatch.setattr(tasks.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        tasks.require_python()
    assert stopped.value.code == 2 and "当前是 3.10" in capsys.readouterr().err
    started = []
    monkeypatch.setattr(tasks.shutil, "which", lambda name: sys.executable if name == "python3.12" else None)
    monkeypatch.setattr(tasks.os, "execv", lambda path, arguments: started.append([path, *arguments[1:]]))
    monkeypatch.setattr(tasks.sys, "argv", ["tasks.py", "test"])
    with pytest.raises(SystemExit):
        tasks.require_python()
    assert started == [[sys.executable, "tasks.py", "test"]]


# --------------------------------------------------------------- browser


def debian(tasks, name):
    tasks.OS_RELEASE.write_text(f'PRETTY_NAME="x"\nID={name}\nID_LIKE=debian\n')


@pytest.mark.parametrize("found", ["/usr/bin/true", None])
def test_debian_gets_chromium_from_apt(tasks, apt, monkeypatch, found):
    debian(tasks, "debian")
    monkeypatch.setattr(tasks, "find_browser", lambda: found if apt else None)
    assert tasks.browser() == ({"CHROME": found} if found else {})
    assert apt == ["chromium"]


def test_ubuntu_gets_a_browser_that_is_no_snap(tasks, apt, monkeypatch):
    debian(tasks, "ubuntu")
    called = []
    monkeypatch.setattr(tasks.subprocess, "run", lambda command: called.append(list(map(str, command))))
    monkeypatch.setattr(tasks, "find_browser", lambda: None)
    assert tasks.browser() == {}
    assert apt == [] and called[0][1:] == ["-m", "playwright", "install", "--with-deps", "chromium"]


def test_nothing_is_installed_where_a_browser_is_named_found_or_not_ours(tasks, apt, monkeypatch):
    monkeypatch.setattr(tasks, "find_browser", lambda: "/opt/chrome")
    assert tasks.browser() == {"CHROME": "/opt/chrome"}
    monkeypatch.setattr(tasks, "find_browser", lambda: None)
    monkeypatch.setenv("CHROME", "/my/chrome")
    assert tasks.browser() == {}
    monkeypatch.delenv("CHROME")
    monkeypatch.setattr(tasks, "can_apt", lambda: False)
    assert tasks.browser() == {}
    assert apt == []


def test_ubuntus_stub_is_not_taken_for_a_browser(tasks, monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "succeeds", lambda *command: subprocess.call(command) == 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    stub = tmp_path / "chromium-browser"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    assert tasks.find_browser() is None
    playwright = tmp_path / ".cache/ms-playwright/chromium-1200/chrome-linux64/chrome"
    playwright.parent.mkdir(parents=True)
    playwright.write_text("#!/bin/sh\nexit 0\n")
    playwright.chmod(0o755)
    assert tasks.find_browser() == str(playwright)


# ----------------------------------------------------------------- tasks


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["report", "-h"]])
def test_help_runs_nothing(tasks, capsys, arguments):
    assert tasks.main(arguments) == 0
    assert capsys.readouterr().out.startswith("用法：make 任务") and commands(tasks) == []


def test_what_is_not_known_is_refused(tasks, capsys):
    assert tasks.main(["reprot"]) == 2
    assert "不认识“reprot”" in capsys.readouterr().err
    assert tasks.main(["report", "--profle", "quick"]) == 2
    assert "不认识“--profle”" in capsys.readouterr().err
    assert commands(tasks) == []


def test_report_takes_profile_and_data_from_options_and_variables(tasks, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "browser", lambda: {"CHROME": "/opt/chrome"})
    assert tasks.main(["report", "--profile", "smoke"]) == 0
    *_, (command, environment) = tasks.commands
    assert command.endswith("-m vitlib report --profile smoke --data auto")
    assert environment == {"CHROME": "/opt/chrome"}
    monkeypatch.setenv("PROFILE", "quick")
    monkeypatch.setenv("DATA", "my data")
    tasks.main(["report"])
    assert commands(tasks)[-1].endswith("--profile quick --data my data")
    assert "PROFILE=quick DATA=my data" in capsys.readouterr().out  # a variable may have been set long ago


def test_make_passes_values_with_spaces(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tasks.py").write_text("import os, sys; print(sys.argv[1:], os.environ['DATA'], sep='|')")
    command = [
        "make",
        "-C",
        tmp_path,
        "--no-print-directory",
        "report",
        "DATA=my data",
        f"PYTHON={sys.executable}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['report']|my data"


@pytest.mark.parametrize(
    ("task", "expected"), [("test", "-m pytest -k stats"), ("test-slow", "-m pytest -m slow -k stats")]
)
def test_options_reach_pytest(tasks, monkeypatch, task, expected):
    monkeypatch.setattr(tasks, "browser", dict)
    assert tasks.main([task, "-k", "stats"]) == 0
    assert commands(tasks)[-1].endswith(expected)


def test_a_failure_and_an_interruption_are_passed_on(tasks, monkeypatch):
    for error, status in ((subprocess.CalledProcessError(7, "pytest"), 7), (KeyboardInterrupt(), 130)):
        monkeypatch.setitem(tasks.TASKS, "test", lambda options, error=error: (_ for _ in ()).throw(error))
        assert tasks.main(["test"]) == status


def test_an_interrupted_command_ends_in_its_own_way(tmp_path):
    """Ctrl-C reaches the whole group: the command says its farewell, then the task ends with 130, without pip's retry."""
    shutil.copy(ROOT / "tasks.py", tmp_path)
    (tmp_path / "slow.py").write_text(
        "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5)\n    print('farewell')\n    raise SystemExit(130)\n"
    )
    # a shell that starts pytest in the background makes its children deaf to Ctrl-C
    code = "import signal, sys, tasks; signal.signal(signal.SIGINT, signal.default_int_handler); tasks.TASKS['test'] = lambda options: tasks.run(sys.executable, 'slow.py'); sys.exit(tasks.main(['test']))"
    task = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert task.stdout.readline() == "ready\n"
    os.killpg(task.pid, signal.SIGINT)
    out, err = task.communicate(timeout=30)
    assert (task.returncode, out) == (130, "farewell\n") and "重新运行" in err


def test_the_data_folder_is_made_absolute(monkeypatch, tmp_path):
    shutil.copy(ROOT / "tasks.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    code = "import sys, tasks; tasks.run(sys.executable, '-c', 'import os; print(os.environ[\"CIFAR_VIT_DATA\"])', cwd='/')"
    environment = {**os.environ, "CIFAR_VIT_DATA": "my data"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "my data")


def project(root):
    """Fill a folder with what must and what must not be handed in."""
    wanted = [
        "README.md",
        ".ci/run",
        ".gitignore",
        "vitlib/data/sets.py",
        "docs/report.png",
        "report/weights/best.safetensors",
        "report/members.yml",
    ]
    unwanted = ["data/0/1.jpg", "mine/cat/1.JPG", "CIFAR10_balance.zip", ".git/config", ".venv/x.py", "build/runs/1.json",
                "vitlib/__pycache__/a.pyc", "dist/a.whl", ".env", "mine.safetensors", "best.onnx", "best.pt2", "mine/1.tif",
                "venv/pyvenv.cfg", "venv/lib/x.py", "docs/mine.pt"]  # fmt: skip
    for name in wanted + unwanted:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return {*wanted, "requirements.lock", "pyproject.toml"}


def test_hand_in_holds_report_and_code_but_no_images(tasks, capsys):
    wanted = project(tasks.ROOT)
    assert tasks.main(["handin"]) == 2
    assert "make report" in capsys.readouterr().err
    (tasks.BUILD / "report.html").write_text("html")
    (tasks.BUILD / "report.pdf").write_text("pdf")
    assert tasks.main(["handin"]) == 0
    with zipfile.ZipFile(tasks.BUILD / "cifar-vit-handin.zip") as archive:
        names = set(archive.namelist())
    assert names == {"cifar-vit/report.html", "cifar-vit/report.pdf"} | {f"cifar-vit/code/{name}" for name in wanted}


def test_hand_in_packs_no_report_with_names_of_before(tasks, capsys):
    project(tasks.ROOT)
    (tasks.BUILD / "report.html").write_text("html")
    members = tasks.ROOT / "report/members.yml"
    members.write_text("- name: 组员甲", "utf-8")
    os.utime(members, (2e9, 2e9))  # later than the report
    assert tasks.main(["handin"]) == 2 and "make report" in capsys.readouterr().err
    assert not (tasks.BUILD / "cifar-vit-handin.zip").exists()
    os.utime(members, (1e9, 1e9))
    assert tasks.main(["handin"]) == 0


def test_a_wrong_option_is_told_in_chinese(tasks, capsys):
    with pytest.raises(SystemExit, match="2"):
        tasks.main(["report", "--profile"])
    assert "help" in (told := capsys.readouterr().err) and "参数" in told


def test_clean_keeps_what_took_hours_unless_told(tasks):
    wanted = project(tasks.ROOT)
    (tasks.BUILD / "report.html").write_text("html")
    assert tasks.main(["clean"]) == 0
    assert (tasks.BUILD / "runs/1.json").exists() and tasks.VENV.exists()
    assert not (tasks.BUILD / "report.html").exists() and not (tasks.ROOT / "dist").exists()
    assert tasks.main(["clean", "--all"]) == 0
    assert not tasks.BUILD.exists() and not tasks.VENV.exists()
    assert all((tasks.ROOT / name).exists() for name in [*wanted, "data/0/1.jpg"])
