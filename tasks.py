#!/usr/bin/env python3
"""The project's tasks: `make report` is `python3 tasks.py report`, and so on, also without make.

Only the standard library is used, since a bare machine has nothing else: the first task makes
the virtual environment `.venv` and installs what requirements.lock names into it.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed.txt"  # what the environment was made from, or UNFINISHED
UNFINISHED = "unfinished"
UV = "uv==0.13.9"  # pinned, since it decides how the lock is read
OS_RELEASE = Path("/etc/os-release")
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
LOCK_HEADER = """\
# Every dependency at the version that is tested, for Python 3.11 and later on Linux, macOS and Windows.
# Compiled from pyproject.toml, the one list of dependencies, by `python3 tasks.py lock`.
"""
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".npy", ".zip"}
MODELS = {".safetensors", ".onnx", ".pt2", ".pt", ".pth", ".data"}
HIDDEN = {".ci", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"}  # what is handed in of such names

HELP = """\
用法：make 任务          或：python3 tasks.py 任务

  report     建立环境、取得数据、运行四个笔记本，生成 build/report.html 和 build/report.pdf
             PROFILE=auto|smoke|quick|hours|days|full|published   规模（默认 auto）
             DATA=auto|course|cifar10|synthetic|路径   数据（默认 auto）
  test       建立环境并运行快速测试
  test-slow  运行慢速测试（浏览器、全新环境等）
  lab        在 JupyterLab 中打开笔记本
  handin     把报告和代码打包成一个可以上交的 zip（不含图像）
  setup      只建立环境
  lint       检查代码风格和类型
  lock       由 pyproject.toml 更新 requirements.lock
  clean      删除生成的文件，保留训练好的结果和环境（python3 tasks.py clean --all 全部删除）
  help       显示本说明

示例：make report PROFILE=quick DATA=course
      python3 tasks.py report --profile quick --data course
环境变量：CIFAR_VIT_DATA（课程数据所在的文件夹）、CHROME（浏览器）、CIFAR_VIT_DEVICE（cpu、cuda、mps）、
CIFAR_VIT_RUNS（训练结果所在的文件夹）、CIFAR_VIT_CACHE（解码后的图像，默认 ~/.cache/cifar-vit）"""


def main(arguments=None):
    """Run one task and return its exit status."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = lambda message: sys.exit(stop(f"参数有误（{message}）：用法见 `python3 tasks.py help`。"))
    parser.add_argument("task", nargs="?", default="help")
    parser.add_argument("-h", "--help", dest="task", action="store_const", const="help")
    parser.add_argument("--profile", default=os.environ.get("PROFILE") or "auto")
    parser.add_argument("--data", default=os.environ.get("DATA") or "auto")
    parser.add_argument("--all", action="store_true")
    options, options.rest = parser.parse_known_args(arguments)
    if options.task not in TASKS or (options.rest and options.task not in ("test", "test-slow", "lab")):
        unknown = options.rest[0] if options.task in TASKS else options.task
        return stop(f"不认识“{unknown}”：请用 `python3 tasks.py help` 查看用法。")
    try:
        return TASKS[options.task](options) or 0
    except subprocess.CalledProcessError as failed:  # the command has said why itself
        return max(failed.returncode, 1)
    except KeyboardInterrupt:
        return stop("已中断。已完成的部分都保留着，重新运行同一条命令即可继续。", 130)


def require_python():
    """Hand over to a newer Python where this one is too old, or say what to install."""
    if sys.version_info >= (3, 11):  # noqa: UP036 (this file also starts on older Pythons, to say so)
        return
    for newer in filter(None, map(shutil.which, ("python3.13", "python3.12", "python3.11"))):
        if succeeds(newer, "--version"):  # a version manager's stand-in may not
            os.execv(newer, [newer, *sys.argv])
    stop("需要 Python 3.11 或更新的版本，当前是 {}.{}：请先安装新版 Python。".format(*sys.version_info))
    sys.exit(2)


def setup(options=None):
    """Make `.venv` hold what the lock names; instant the second time, repaired after an interruption."""
    wanted, found = fingerprint(), STAMP.read_text() if STAMP.is_file() else ""
    if found == wanted and PYTHON.exists():
        return
    anew = found == UNFINISHED or not succeeds(PYTHON, "-c", "import pip")
    if anew:
        make_venv()
    STAMP.write_text(UNFINISHED)
    say("[2/2] 安装依赖（Linux 上约 6 GB，只有第一次要等几分钟）……")
    try:
        install()
    except subprocess.CalledProcessError:
        STAMP.write_text(UNFINISHED if anew else found)  # without a network, what worked before is all there is
        raise
    STAMP.write_text(wanted)
    say("环境已就绪。")


def fingerprint():
    """Hash all that the environment depends on; its place too, which the editable install records."""
    parts = [str((ROOT, sys.version_info[:2])).encode()]
    parts += [(ROOT / name).read_bytes() for name in ("requirements.lock", "pyproject.toml")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def make_venv():
    """Create `.venv` anew; Debian and Ubuntu keep the module for it in a package of its own."""
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    ready = [sys.executable, "-c", "import venv, ensurepip"]  # a new process sees what was just installed
    if not succeeds(*ready) and not (can_apt() and apt_install(package) and succeeds(*ready)):
        remedy = f"运行 `sudo apt-get install {package}`" if shutil.which("apt-get") else "安装它"
        sys.exit(stop(f"这个 Python 缺少 venv 或 ensurepip 模块，无法建立虚拟环境：请先{remedy}，再重试。"))
    say("[1/2] 创建虚拟环境 .venv ……")
    # the base Python: were it .venv's own, --clear would delete the running one
    run(getattr(sys, "_base_executable", None) or sys.executable, "-m", "venv", "--clear", VENV)


def install():
    """Install the lock with uv, several times faster than pip, or with pip where uv cannot."""
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check"]
    packages = ["-r", ROOT / "requirements.lock", "-e", ROOT]
    try:
        run(*pip, "install", "--quiet", UV)
        run(PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, *packages, env=uv_environment(pip))
    except subprocess.CalledProcessError:
        say("uv 没有装成，改用 pip 重试（慢一些）……")
        run(*pip, "install", *packages)


def uv_environment(pip):
    """Give uv the mirror and the certificate that pip was given, whose settings it does not read, and pip's compiling.

    Under PYTHONDONTWRITEBYTECODE, set in many containers, every kernel and command would compile torch by itself.
    """
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True).stdout
    settings = dict(re.findall(r"^\S+?\.([\w-]+)='(.*)'$", listed, flags=re.MULTILINE))
    names = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
    given = {ours: settings[theirs] for theirs, ours in names.items() if settings.get(theirs)}
    return {"UV_HTTP_TIMEOUT": "180", "UV_COMPILE_BYTECODE": "1", **given, **os.environ}


def lock(options):
    """Compile the lock again, keeping every version that still fits pyproject.toml."""
    setup()
    path = ROOT / "requirements.lock"
    how = ["--all-extras", "--universal", "--python-version=3.11", "--no-annotate", "--no-header", "--quiet"]
    run(PYTHON, "-m", "uv", "pip", "compile", "pyproject.toml", *how, "--output-file", path)
    path.write_text(LOCK_HEADER + path.read_text())


def browser():
    """Return the setting that names a browser for the PDF, after installing one where that is ours to do."""
    if os.environ.get("CHROME") or sys.platform != "linux":
        return {}  # elsewhere vitlib finds one itself or says what to install
    found = find_browser()
    if found is None and can_apt():
        say("没有找到 Chromium、Chrome 或 Edge，正在安装一个（生成 PDF 要用）……")
        if re.search(r'^ID="?debian', OS_RELEASE.read_text(), flags=re.MULTILINE):
            apt_install("chromium")
        else:  # Ubuntu's package is a stub for snap, which servers and containers lack
            subprocess.run([PYTHON, "-m", "playwright", "install", "--with-deps", "chromium"])
        found = find_browser()
    return {"CHROME": found} if found else {}


def find_browser():
    """Return a browser that really starts (Ubuntu's stub does not), from PATH or from Playwright, or None."""
    names = "chromium google-chrome google-chrome-stable microsoft-edge chromium-browser"
    store = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    places = [*map(shutil.which, names.split()), *map(str, store.glob("chromium-*/chrome-linux*/chrome"))]
    return next((path for path in places if path and succeeds(path, "--version")), None)


def can_apt():
    return IS_ROOT and shutil.which("apt-get") is not None


def apt_install(package):
    say(f"正在用 apt-get 安装 {package} ……")
    os.environ.setdefault("DEBIAN_FRONTEND", "noninteractive")
    subprocess.call(["apt-get", "-qq", "update"])
    return subprocess.call(["apt-get", "-qq", "install", "-y", "--no-install-recommends", package]) == 0


def report(options):
    setup()
    say(f"生成报告：PROFILE={options.profile} DATA={options.data}")  # a variable of the user's shell may be the reason
    what = ["--profile", options.profile, "--data", options.data]  # a path is relative to where the user is
    run(PYTHON, "-m", "vitlib", "report", *what, env=browser(), cwd=None)


def test(options):
    setup()
    run(PYTHON, "-m", "pytest", *options.rest)


def test_slow(options):
    setup()
    run(PYTHON, "-m", "pytest", "-m", "slow", *options.rest, env=browser())


def lab(options):
    setup()
    extra = ["--allow-root"] * IS_ROOT + options.rest
    run(PYTHON, "-m", "jupyterlab", "--notebook-dir", ROOT, *extra, "notebooks/2.1_vit.ipynb")


def lint(options):
    setup()
    for command in ("ruff check", "ruff format --check", "mypy"):
        run(PYTHON, "-m", *command.split())


def handin(options):
    """Zip the built report and the code: no image of the data, nothing that can be built again."""
    names, reports = ROOT / "report/members.yml", sorted([*BUILD.glob("report.pdf"), *BUILD.glob("report.html")])
    if not reports or names.stat().st_mtime > min(path.stat().st_mtime for path in reports):
        return stop("还没有报告，或它早于成员表：请先运行 `make report`（或 `python3 tasks.py report`）。")
    target, temporary = (BUILD / f"cifar-vit-handin.{ending}" for ending in ("zip", "tmp"))
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in reports:
            archive.write(path, f"cifar-vit/{path.name}")
        for path in code_files(ROOT):
            archive.write(path, f"cifar-vit/code/{path.relative_to(ROOT).as_posix()}")
    os.replace(temporary, target)
    say(f"已打包：{target}（{target.stat().st_size / 1e6:.1f} MB）")


def code_files(folder):
    """Yield the project's own files; of pictures only those in docs, which the README shows, of models the published."""
    ours = {ROOT / "docs": IMAGES, ROOT / "report/weights": MODELS}.get(folder, set())
    for path in sorted(folder.iterdir()):
        hidden = path.name[0] == "." and path.name not in HIDDEN
        if hidden or path.is_symlink() or path.name == "__pycache__" or path.suffix == ".egg-info":
            continue
        if path.is_file() and path.suffix.lower() not in (IMAGES | MODELS) - ours:
            yield path
        elif path.is_dir() and path not in (BUILD, ROOT / "dist", ROOT / "data") and not (path / "pyvenv.cfg").exists():
            yield from code_files(path)


def clean(options):
    """Delete what the tasks made; finished runs and the environment, worth hours, only with `--all`."""
    caches = [ROOT / name for name in ("dist", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache")]
    built = [BUILD, VENV] if options.all else [path for path in BUILD.glob("*") if path.name != "runs"]
    for path in filter(Path.exists, caches + built):
        path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)
    kept = "" if options.all else "；保留了训练结果 build/runs 和环境 .venv（clean --all 一并删除）"
    say(f"已清理{kept}。")


TASKS = {"report": report, "test": test, "test-slow": test_slow, "lab": lab, "handin": handin, "setup": setup}
TASKS.update({"lint": lint, "lock": lock, "clean": clean, "help": lambda options: say(HELP)})


def run(*command, env=None, cwd=ROOT):
    """Run a command with its output shown; a failure is a CalledProcessError."""
    environment = {**os.environ, **(env or {})}
    if os.environ.get("CIFAR_VIT_DATA"):  # notebooks and tests run in folders of their own
        environment["CIFAR_VIT_DATA"] = str(Path(os.environ["CIFAR_VIT_DATA"]).expanduser().resolve())
    process, interrupted = subprocess.Popen([str(part) for part in command], cwd=cwd, env=environment), False
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:  # the command has got it too; let it end in its own way
            interrupted = True
    if process.returncode:
        raise KeyboardInterrupt if interrupted else subprocess.CalledProcessError(process.returncode, command)


def succeeds(*command):
    try:
        return subprocess.run([str(part) for part in command], capture_output=True).returncode == 0
    except OSError:
        return False


def say(message):
    print(message, flush=True)


def stop(message, status=2):
    print(message, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    require_python()
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show Chinese must not stop the work
        stream.reconfigure(errors="replace")
    sys.exit(main())
