"""The four notebooks: how they are stored, that what they say comes from their runs, and that they run.

Running them, from a store that holds nothing at first, is slow.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import toy
from data_helpers import class_files, write_folder

from labreport.assembly.browser import find_browser
from labreport.assembly.document import merge
from labreport.assembly.exporter import to_html
from labreport.assembly.front import gather
from labreport.assembly.notebooks import run_notebooks
from vitlib.models import model_defaults
from vitlib.plans import BRIEF, SECTIONS
from vitlib.store import Store

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("2.*.ipynb"))
LABEL = r"(?:fig|tab):[a-z0-9_-]+"
SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 2, "ffn_hidden_channels": 16}


def each_notebook(function):
    return pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)(function)


def sources(path, kind):
    """Return the sources of the cells of a kind, ``code`` or ``markdown``."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


# ------------------------------------------------------------- as stored


@each_notebook
def test_the_parameters_are_the_same_everywhere(path):
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    given: dict = {}
    exec(cell.source, given)
    del given["__builtins__"]
    common = {"profile": "quick", "data": "auto", "images": None, "epochs": None, "seeds": None}
    assert [*given][:5] == [*common] and given.items() >= common.items()
    assert not any(value for name, value in given.items() if name not in common)  # what is extra is off


@each_notebook
def test_cells_have_readable_names_and_the_kernel_is_pythons(path):
    notebook = nbformat.read(path, as_version=4)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", cell.id) for cell in notebook.cells)
    assert notebook.cells[0].source.startswith(f"# {path.stem.split('_')[0]} ")


@each_notebook
def test_every_figure_and_table_is_referred_to_and_exists(path):
    text = "\n".join(sources(path, "code") + sources(path, "markdown"))
    shown = re.findall(rf'"({LABEL})"', text)
    assert shown and len(set(shown)) == len(shown)
    assert set(re.findall(rf"\]\(#({LABEL})\)", text)) == set(shown)


@each_notebook
def test_what_may_be_missing_is_not_spoken_of_in_fixed_prose(path):
    """A reference to a figure that some profiles leave out would break the report there."""
    conditional = {
        constant.value
        for source in sources(path, "code")
        for branch in ast.walk(ast.parse(source))
        if isinstance(branch, ast.If)
        for constant in ast.walk(branch)
        if isinstance(constant, ast.Constant) and re.fullmatch(LABEL, str(constant.value))
    }
    referred = re.findall(rf"\]\(#({LABEL})\)", "\n".join(sources(path, "markdown")))
    assert conditional and not conditional & set(referred)


@each_notebook
def test_no_result_is_typed_by_hand(path):
    """A measured percentage has a decimal; typed ones may only be quotations of the earlier report."""
    words = sources(path, "markdown")
    for source in sources(path, "code"):
        words += [
            node.value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    for sentence in re.split("[。？！\n]", "\n".join(words)):
        if re.search(r"\d\.\d+ *(%|个百分点)", sentence):
            assert "旧报告" in sentence, sentence


# -------------------------------------------------------------- executed


def page(executed):
    """Return the report's HTML of executed notebooks; all labels are referred to, all references resolve."""
    notebook, origins = merge(executed)
    front = {"title": "题目", "abstract": "摘要", "course": "", "members": [], **gather(origins)}
    html, unused = to_html(notebook, front)
    assert unused == []
    assert "运行完毕后" not in html, "the answer at the top is still to come"
    return html


def execute(path, out, **parameters):
    (executed,) = run_notebooks([path], {"profile": "smoke", "epochs": 1, **parameters}, out, progress=False)
    return executed


@pytest.mark.slow
def test_token_merging_runs_on_a_folder_of_other_classes_and_sizes(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_VIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # not the checkout
    images = {f"train/{name}": data for name, data in class_files(["苹果", "pear", "plum"], 12).items()}
    images |= {f"test/{name}": data for name, data in class_files(["苹果", "pear", "plum"], 4).items()}
    folder = write_folder(tmp_path / "fruit", images)
    html = page([execute(PATHS[3], tmp_path / "out", data=str(folder))])
    assert "不必训练的方法（词元合并" in html and "合成数据" not in html
    assert "小模型的参数量是最佳配方的" in html  # found by its label's beginning


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS[:3], ids=lambda path: path.stem)
def test_a_notebook_runs_on_generated_images(path, tmp_path):
    html = page([execute(path, tmp_path, data="synthetic", images=40)])
    assert len(re.findall("（合成数据；训练图像", html)) >= 3  # in the captions of results
    assert "证据不足" in html  # one seed never decides


@pytest.mark.slow
def test_the_report_is_made_from_records_alone(tmp_path):
    """Records of small stand-ins on other images than those at hand, and no weights: in a copy of the project."""
    for name in ("vitlib", "labreport", "notebooks", "report"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results", "weights")
        )
    store = Store(tmp_path / "runs", tmp_path / "report" / "results")
    data = toy.toy(train=60, test=30, size=32)

    def shrink(recipe):
        before = {role: shrink(start) for role, start in recipe.starts().items()}
        args = {name: size for name, size in SMALL.items() if name in model_defaults(recipe.model)}
        args |= recipe.model_args
        if "head_dim" in args:  # pruned: less than its small base
            args |= {"num_heads": 1, "head_dim": 8, "ffn_hidden_channels": 8}
        epochs = min(2, recipe.epochs)
        return recipe.but(model_args=args, epochs=epochs, batch_size=20, warmup_epochs=0.25 * epochs, **before)

    entries = [entry for table in SECTIONS.values() for entry in table if entry.scope == BRIEF]
    for recipe in {entry.recipe.name: entry.recipe for entry in entries}.values():
        for seed in range(3):
            store.publish(store.get(shrink(recipe), seed, data, show=False))
    code = (
        "import sys; from pathlib import Path; from labreport.assembly.notebooks import run_notebooks\n"
        "import vitlib; assert Path(vitlib.__file__).parts[:-2] == Path.cwd().parts, vitlib.__file__\n"
        "paths = sorted(Path('notebooks').glob('2.*.ipynb'))\n"
        "run_notebooks(paths, {'profile': 'published', 'data': 'synthetic'}, Path('out'), progress=False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    html = page(sorted((tmp_path / "out").glob("*.ipynb")))
    assert "没有权重，本次不报告准确率" in html and "玩具数据" in html
    assert "各 3 个种子" in html and "种子少于 3 个" not in html


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("CIFAR_VIT_DATA"), reason="needs the course's data in CIFAR_VIT_DATA")
def test_the_published_report_is_made_from_the_published_records_alone(tmp_path):
    environment = os.environ | {"CIFAR_VIT_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-m", "vitlib", "report", "--profile", "published", "--out", tmp_path / "out", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout)
    assert made["profile"] == "published" and 10**6 < Path(made["html"]).stat().st_size < 4 * 2**20
    if find_browser():
        assert 10**6 < Path(made["pdf"]).stat().st_size < 4 * 2**20
    assert not [*(tmp_path / "runs").rglob("record.json")], "a run was trained"
    assert not [*(tmp_path / "runs").rglob("measured/*/*.json")], "something was measured anew"
