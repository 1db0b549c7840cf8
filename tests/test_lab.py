"""The notebooks open and run in JupyterLab, in a real browser."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from labreport.assembly.browser import find_browser

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
TOKEN = "only-for-this-test"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="no Chromium-family browser")]


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on ``tmp_path``; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={tmp_path}", "--LabApp.news_url=None"]  # fmt: skip
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}", timeout=5).close()
                break
            except urllib.error.URLError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "lab.log").read_text()
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        server.terminate()
        server.wait(20)


def opening(path, cells):
    """Return the first cells of a notebook, and one that says that all before it have run."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    last = {"cell_type": "code", "id": "last", "metadata": {}, "outputs": [], "execution_count": None}
    notebook["cells"] = [*notebook["cells"][:cells], last | {"source": "print('全部' + '运行完毕')"}]
    return json.dumps(notebook)


def test_a_notebook_opens_and_runs(lab, tmp_path):
    (tmp_path / "2.1.ipynb").write_text(opening(NOTEBOOKS / "2.1_vit.ipynb", 4), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(f"{lab}/tree/2.1.ipynb?token={TOKEN}")
        page.get_by_text("| Idle").wait_for(timeout=90_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.get_by_text("全部运行完毕", exact=True).wait_for(timeout=90_000)
        expect(page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']")).to_have_count(0)
        browser.close()
