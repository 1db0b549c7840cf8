"""The house rules that a machine can check: layout, sizes, dependencies, and what may be imported where."""

import ast
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from vitlib.paths import results_dir, weights_dir
from vitlib.record import read_record

ROOT = Path(__file__).resolve().parent.parent
VITLIB = sorted((ROOT / "vitlib").rglob("*.py"))
LABREPORT = sorted((ROOT / "labreport").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# models, losses, data, engine and store
CORE = ("models/", "losses.py", "data/", "engine.py", "state.py", "store.py", "record.py")
TRAINING = {"torch", "torchvision", "numpy", "einops", "pillow", "safetensors", "tqdm"}

# Dependencies that no line of Python imports, and why they are there.
RUN_BY_NAME = {
    "jupyterlab": "make lab",
    "ipykernel": "the kernel that papermill starts",
    "brotli": "fonttools imports it for WOFF2",
    "onnxscript": "torch.onnx.export imports it",
    "ipywidgets": "tqdm draws progress bars with it in a notebook",
    "ziamath": "its font is found without importing it",
    "ruff": "make lint", "mypy": "make lint", "pre-commit": "CONTRIBUTING.md", "nbstripout": "pre-commit",
    "types-pyyaml": "mypy", "types-tqdm": "mypy", "pandas-stubs": "mypy", "hatchling": "builds the wheel",
}  # fmt: skip


def tracked():
    """Return the files that git tracks, or all that a hand-in holds, which is no repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if names := [
        name for name in listed.stdout.split("\0") if name
    ]:  # none in a hand-in that lies in another repository
        return [path for name in names if (path := ROOT / name).is_file()]
    sys.path.insert(0, str(ROOT))
    from tasks import code_files

    return list(code_files(ROOT))


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def normal(name):
    """Return a distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements):
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def locked():
    """Return the lock as {name: [(version, marker), ...]}."""
    packages = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.+]+)(?: ; (.+))?", line)
            assert match, f"a line that is more than name, version and marker: {line}"
            packages.setdefault(normal(match[1]), []).append((match[2], match[3] or ""))
    return packages


def imported(paths):
    """Return the top-level names of the absolute imports in Python files and notebooks."""
    names = set()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            text = "\n".join("".join(cell["source"]) for cell in cells)
            text = re.sub(r"^\s*[%!].*$", "", text, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])
    return names


# ----------------------------------------------------------- notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_takes_parameters(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] is not None for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_the_four_sections_are_there():
    assert [path.stem.split("_")[0] for path in NOTEBOOKS] == ["2.1", "2.2", "2.3", "2.4"]


# -------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "path", [*VITLIB, *LABREPORT, ROOT / "tasks.py"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_a_file_is_short_enough_to_read_in_one_sitting(path):
    assert lines(path) <= 300
    assert "utils" not in path.stem


def lines_of_code(path):
    """Count the lines that hold code: neither blank, nor only a comment, nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    silent = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    held = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            held |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):  # docstrings, also those of attributes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held -= set(range(node.lineno, node.end_lineno + 1))
    return len(held)


def test_the_whole_stays_small():
    core = [path for path in VITLIB if path.relative_to(ROOT / "vitlib").as_posix().startswith(CORE)]
    assert {path.name for path in core} >= {"vit.py", "original.py", "losses.py", "engine.py", "store.py"}
    assert sum(map(lines_of_code, core)) <= 2650
    assert sum(map(lines_of_code, VITLIB)) <= 5000


def generator(name):
    """Return a module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_results_and_the_model_card_are_what_the_records_give():
    results, card = generator("results"), generator("model_card")
    lines = results.rows([read_record(path, published=True) for path in sorted(results_dir().glob("*.json"))])
    for name in results.HEADS:
        text = (ROOT / name).read_text("utf-8")
        assert results.with_results(text, name, lines) == text, f"run python docs/results.py for {name}"
    assert (weights_dir() / "MODEL_CARD.md").read_text("utf-8") == card.document(), "run python docs/model_card.py"


def test_training_knows_nothing_of_the_report():
    for path in VITLIB:
        asked = [line for line in path.read_text(encoding="utf-8").splitlines() if "labreport" in line]
        if path.name == "commands.py":  # `vitlib report` hands over, when it runs
            assert asked and all(line.startswith("    from labreport") for line in asked)
        else:
            assert not asked, path.name


def test_tracked_files_are_small_and_hold_no_image_of_the_data():
    files = tracked()
    assert sum(path.stat().st_size for path in files) <= 24 * 2**20
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        assert path.suffix.lower() not in {".jpg", ".jpeg", ".zip", ".pkl", ".pt"}, name
        assert path.suffix != ".png" or name.startswith("docs/"), name
    for name in ("report/report.html", "report/report.pdf"):
        if (ROOT / name).exists():
            assert (ROOT / name).stat().st_size <= 4 * 2**20


def test_nothing_tracked_names_this_machine():
    # the strings are put together here, so that this file does not hold them
    roots = {f"/{name}/" for name in ("work", "root", "home")} | {f"{Path.home()}/", f"{ROOT.parent}/"} - {"//"}
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(root)}\w" for root in sorted(roots)))
    for path in tracked():
        if path.suffix not in {".png", ".pdf", ".npz", ".npy", ".safetensors"}:
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.name}: {found[0]}"


# -------------------------------------------------------- dependencies


def test_the_lock_holds_every_dependency_for_every_system():
    lock, groups = locked(), [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wanted = set().union(*map(declared, groups))
    assert wanted <= lock.keys()
    bounds = {normal(match[1]): match[2] for group in groups for requirement in group
              if (match := re.match(r"([\w.-]+)>=([\d.]+)", requirement))}  # fmt: skip
    assert bounds.keys() == wanted

    def number(version):
        return [int(part) for part in re.findall(r"\d+", version)]

    for name, bound in bounds.items():
        assert all(number(version) >= number(bound) for version, _ in lock[name]), name
    assert [version for version, _ in lock["torch"]] != ["2.13.0"]
    markers = " ".join(marker for versions in lock.values() for _, marker in versions)
    assert all(f"sys_platform == '{system}'" in markers for system in ("linux", "darwin", "win32"))


def test_every_dependency_is_imported_or_has_its_reason():
    distributions = packages_distributions()
    tests = sorted((ROOT / "tests").rglob("*.py"))

    def used(paths):
        return {normal(owner) for name in imported(paths) for owner in distributions.get(name, [])}

    main, dev = declared(PROJECT["dependencies"]), declared(PROJECT["optional-dependencies"]["dev"])
    third_party = {name for name in used([*VITLIB, *LABREPORT, *NOTEBOOKS])} - {"cifar-vit"}
    assert third_party <= main, "imported by a package or a notebook, but not declared"
    assert main - third_party <= RUN_BY_NAME.keys(), "declared, but neither imported nor with a reason"
    assert used(tests) - {"cifar-vit"} <= main | dev, "imported by a test, but not declared"
    assert dev - used(tests) <= RUN_BY_NAME.keys(), "a dev dependency that no test imports"


BARE = """
import sys
import importlib

class Without:
    # a finder to which the blocked are not installed, also when it is only asked whether they are
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
for module in MODULES:
    importlib.import_module(module)
from vitlib.cli import main
main(["train", "cpu", "--images", "130", "--epochs", "1", "--seed", "9", "--data", "synthetic", "--json"])
"""


def closure(names):
    """Return the distributions that these need, all the way down, as installed here."""
    from importlib.metadata import PackageNotFoundError, requires

    seen, todo = set(), list(names)
    while todo:
        name = normal(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        todo += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return seen


def test_training_runs_on_a_bare_gpu_machine():
    """All that is not needed by the seven packages is blocked, and the training side still imports and trains."""
    allowed = closure(TRAINING) | {"cifar-vit"}
    blocked = {name for name, owners in packages_distributions().items() if not {normal(o) for o in owners} & allowed}
    assert {
        "matplotlib",
        "seaborn",
        "pandas",
        "scipy",
        "sklearn",
        "papermill",
        "nbconvert",
        "IPython",
        "yaml",
        "bs4",
    } <= blocked
    modules = ["vitlib.data", "vitlib.models", "vitlib.losses", "vitlib.augment", "vitlib.recipes", "vitlib.engine",
               "vitlib.store", "vitlib.plans", "vitlib.sweep", "vitlib.exchange", "vitlib.device", "vitlib.cli"]  # fmt: skip
    code = f"BLOCKED = {sorted(blocked)!r}\nMODULES = {modules!r}\n{BARE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipe"] == "cpu"


def test_the_package_itself_is_light():
    code = (
        "import sys, vitlib, vitlib.cli; print(sorted({'torch', 'numpy', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------ documents


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"])
def test_commands_in_the_documents_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) + re.findall(r"`([^`\n]+)`", text))
    made = set(re.findall(r"\bmake ([a-z-]+)", blocks))
    assert made and made <= targets
    listed = subprocess.run(
        [sys.executable, "-m", "vitlib", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for subcommand in set(re.findall(r"\bvitlib ([a-z]+)\b", blocks)):
        assert re.search(rf"^ +{subcommand} ", listed.stdout, flags=re.MULTILINE), subcommand
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link


def test_both_readmes_name_the_same_commands():
    english, chinese = (
        set(re.findall(r"`((?:make|python|vitlib|conda|pip) [^`]+)`", (ROOT / name).read_text(encoding="utf-8")))
        for name in ("README.md", "README.zh-CN.md")
    )
    assert english - {"vitlib runs"} == chinese - {"vitlib runs"}
    blocks = [
        [line.split("  #")[0].strip() for line in "\n".join(
            re.findall(r"```(?:sh|python)\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        ).splitlines()]
        for name in ("README.md", "README.zh-CN.md")
    ]  # fmt: skip
    assert blocks[0] == blocks[1] and len(blocks[0]) > 10


def test_make_and_tasks_offer_the_same():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())
    code = "import tasks; print(*tasks.TASKS); print(tasks.HELP)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names, usage = done.stdout.split("\n", 1)
    assert targets == phony == set(names.split()) == set(re.findall(r"^  ([a-z-]+) ", usage, flags=re.MULTILINE))


def test_conda_only_brings_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] and environment["channels"] == ["conda-forge"]
    python, pip, by_pip = environment["dependencies"]
    assert python.startswith("python >=3.11") and pip == "pip" and by_pip == {"pip": ["-e ."]}


def test_the_checks_run_the_readmes_command_first():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    made = re.findall(r"\bmake ([a-z-]+)", script.read_text())
    assert made[0] == "test" and made[-1] == "test-slow"


# ---------------------------------------------------------------- style


def test_style():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_types():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
