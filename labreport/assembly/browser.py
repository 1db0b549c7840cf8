"""Find a Chromium-family browser on Linux, macOS or Windows, and let it print a page to PDF."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from vitlib.errors import UserError

COMMANDS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
)
MAC = ("Google Chrome", "Chromium", "Microsoft Edge")
WINDOWS = (r"Google\Chrome\Application\chrome.exe", r"Microsoft\Edge\Application\msedge.exe")
INSTALL = "请安装 Chromium、Chrome 或 Edge（Debian：apt install chromium），或用环境变量 CHROME 指出它的位置"
TIMEOUT = 180  # seconds; a long report prints in under ten


def find_browser() -> str | None:
    """Return the path of a browser, or None.

    Raises:
        UserError: the environment variable ``CHROME`` names no program.
    """
    if chosen := os.environ.get("CHROME"):
        if found := shutil.which(os.path.expanduser(chosen)):
            return found
        raise UserError(f"环境变量 CHROME 指的“{chosen}”不是可以运行的程序；请改正它，或取消它以自动寻找浏览器。")
    # where Playwright puts its own, and with it tasks.py on Ubuntu
    store = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    candidates = sorted(store.glob("chromium-*/chrome-linux*/chrome"))
    if sys.platform == "darwin":
        folders = (Path("/Applications"), Path.home() / "Applications")
        candidates = [folder / f"{name}.app/Contents/MacOS/{name}" for name in MAC for folder in folders]
    elif sys.platform == "win32":
        roots = filter(None, map(os.environ.get, ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")))
        candidates = [Path(root) / name for root in roots for name in WINDOWS]
    installed = (str(path) for path in candidates if path.is_file())
    on_path = (found for found in map(shutil.which, COMMANDS) if found and _starts(found))
    return next(on_path, None) or next(installed, None)


def _starts(command: str) -> bool:
    """Whether a browser on Linux really starts: Ubuntu's ``chromium-browser`` is a stub that asks for snap."""
    if sys.platform != "linux":
        return True
    try:
        return subprocess.run([command, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def print_page(browser: str, page: Path, pdf: Path, profile: Path) -> None:
    """Let ``browser`` print the HTML file ``page`` to ``pdf``; ``profile`` is a folder it may fill.

    Raises:
        UserError: the browser fails, takes more than three minutes or writes no PDF.
    """
    command = [
        browser,
        "--headless",
        "--disable-gpu",
        "--disable-dev-shm-usage",  # small in containers
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        "--no-first-run",
        "--no-default-browser-check",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # the page needs no network: make sure that it has none
        f"--user-data-dir={profile}",
        "--no-pdf-header-footer",
        "--generate-pdf-document-outline",
        f"--print-to-pdf={pdf}",
        page.as_uri(),
    ]
    if sys.platform == "linux":
        # The sandbox does not start as root nor where user namespaces are restricted (containers, newer
        # Ubuntu); the page is our own, holds no script and reaches no network.
        command.insert(1, "--no-sandbox")
    pdf.unlink(missing_ok=True)
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"浏览器 {browser} 打印 PDF 超过 {TIMEOUT} 秒没有结束；请用 CHROME 换一个浏览器重试。"
        ) from error
    except OSError as error:
        raise UserError(f"浏览器 {browser} 启动不了（{error.strerror}）；{INSTALL}。") from error
    if done.returncode or not pdf.is_file() or not pdf.stat().st_size:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["没有说明原因"]
        raise UserError(f"浏览器 {browser} 没有打印出 PDF（退出码 {done.returncode}：{lines[-1]}）；{INSTALL}。")
