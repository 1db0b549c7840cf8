"""The parts that no notebook writes: the front page from members.yml, the appendix from the runs' origins."""

import csv
import importlib.metadata
import platform
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from nbformat import NotebookNode

from vitlib.errors import UserError
from vitlib.paths import share

PACKAGES = ("torch", "torchvision", "numpy", "matplotlib", "seaborn", "scikit-learn", "scipy", "nbconvert")


def read_members(path: Path) -> dict[str, Any]:
    """Return ``course`` and ``members`` (name, number, work, share in percent, equal) from members.yml.

    Raises:
        UserError: file missing or not YAML, a member without name, work or share, shares that do not
            sum to 100 %.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"成员表 {path} 读不出来（{error.strerror}）；请放回它或改用 report/members.yml。") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"成员表 {path} 的格式不对：{error}。请检查缩进、冒号和编码（UTF-8）。") from error
    members = content.get("members") if isinstance(content, dict) else None
    if not isinstance(members, list) or not members:
        raise UserError(f"成员表 {path} 里没有 members 列表；每位成员一项，写明 name、work 和 share。")
    total = 0.0
    for at, member in enumerate(members, start=1):
        if not isinstance(member, dict) or not all(member.get(name) for name in ("name", "work")):
            raise UserError(f"成员表 {path} 的第 {at} 位成员缺 name 或 work。")
        part = member.get("share")
        if not isinstance(part, int | float) or isinstance(part, bool) or not 0 <= part <= 100:
            raise UserError(f"成员表 {path} 里 {member['name']} 的 share={part!r} 应是 0 到 100 的数（百分比）。")
        total += part
    if abs(total - 100) > 1e-6:
        raise UserError(f"成员表 {path} 的分工比例加起来是 {total:g} %，应是 100 %；请改正各人的 share。")
    return {"course": content.get("course", ""), "members": members}


def bibliography(notebook: NotebookNode) -> list[str]:
    """Return the papers that the cells of a merged notebook cite, such as “Lin 等，2017”, sorted by their authors."""
    prose = "\n".join(cell.source for cell in notebook.cells)
    with (share("report") / "references" / "papers.csv").open(encoding="utf-8", newline="") as file:
        return sorted(row["文献"] for row in csv.DictReader(file) if row["引用"] in prose)


def gather(origins: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what the front page and the appendix say about data, machines, runs and software.

    Machines get short names 机 1, 机 2, ... for the table of runs, which has a row for the seeds of a recipe.
    """
    runs: dict[str, dict[str, Any]] = {}
    data: dict[str, dict[str, Any]] = {}
    origins = list(origins)
    for origin in origins:
        runs.update({run["key"]: dict(run) for run in origin["runs"]})
        if facts := origin["data"]:
            data[facts["fingerprint"]] = facts
    machines: dict[tuple[str, str, str], str] = {}
    for run in runs.values():
        software = "，".join(f"{name} {version}" for name, version in run["versions"].items())
        run["machine"] = machines.setdefault((run["device"], run["compute"], software), f"机 {len(machines) + 1}")
        data.setdefault(run["data"]["fingerprint"], {"synthetic": run["data"]["name"] == "synthetic", **run["data"]})
    today = date.today()
    words = [facts["provenance"] for facts in data.values()]
    for facts in data.values():  # a part need not say again what the whole is
        whole = next((i for i, other in enumerate(words) if facts["provenance"].startswith(f"{other}；")), None)
        part = "" if whole is None else facts["provenance"].removeprefix(words[whole])
        facts["told"] = f"第 {whole + 1} 行的数据{part}" if whole is not None else facts["provenance"]
    return {
        "date": f"{today.year} 年 {today.month} 月 {today.day} 日",
        "headlines": [origin["headline"] for origin in origins if "headline" in origin],
        "data": list(data.values()),
        # a subset's words begin with those of the whole: the cover names the whole and says that there are parts
        "sources": [text for text in words if not any(other != text and text.startswith(other) for other in words)],
        "in_part": any(other != text and text.startswith(other) for text in words for other in words),
        "synthetic": any(facts["synthetic"] for facts in data.values()),
        "machines": [(name, *what) for what, name in machines.items()],
        "runs": _rows(runs.values()),
        "count": len(runs),
        "published": sum(run["published"] for run in runs.values()),
        "numerics": sorted({run["numerics"] for run in runs.values()}),
        "stale": sum(run["stale"] for run in runs.values()),
        "software": [("Python", platform.python_version()), *_versions()],
    }


def _rows(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each recipe on each data, with the seeds, machines and keys of its runs and their time in all."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: (run["recipe"], run["data"]["fingerprint"], run["epochs"], run["seed"])):
        alike = run["recipe"], run["data"]["fingerprint"], run["epochs"], run["stale"], bool(run["failed"])
        groups.setdefault(alike, []).append(run)
    return [
        {
            **group[0],
            "seeds": "、".join(str(run["seed"]) for run in group),
            "machine": "、".join(sorted({run["machine"] for run in group})).replace("、机 ", "、"),
            "time": duration(sum(run["seconds"] for run in group)),
            "keys": [run["key"][:8] for run in group],
        }
        for group in groups.values()
    ]


def _versions() -> list[tuple[str, str]]:
    return [(name, importlib.metadata.version(name)) for name in PACKAGES]


def duration(seconds: float) -> str:
    """Return a time span in Chinese with two significant units at most."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} 秒"
    if minutes < 10:
        return f"{minutes} 分 {rest} 秒"
    return f"{minutes} 分" if minutes < 60 else f"{seconds / 3600:.1f} 小时"
