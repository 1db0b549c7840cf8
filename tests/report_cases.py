"""Executed notebooks for the report's tests, made without a kernel."""

import base64
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="300pt" height="120pt"><path d="M0 0L300 120" stroke="#000"/></svg>'
)
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
    )
).decode()
PROSE = (
    "视觉 Transformer 把图像切成小块，每一块映射成一个向量，\n再用自注意力交换信息；**注意力的尺度**是 $\\sqrt{d_k}$。"
    * 3
)


def display(content, kind=None, **meta):
    metadata = {"vitlib": {"kind": kind, **meta}} if kind else {}
    return new_output("display_data", data=content, metadata=metadata)


def figure(label="fig:curve", caption="收敛曲线，$d_k=64$（合成数据）"):
    return display({"image/svg+xml": SVG}, "fig", label=label, caption=caption, runs=[])


def table(label="tab:result", caption="测试准确率（合成数据）", rows=2):
    body = "".join(
        f'<tr><td class="txt">第 {row} 行 $O(N^2)$</td><td class="num">−{row}.5%</td></tr>' for row in range(rows)
    )
    head = '<tr><th class="txt">表头方法</th><th class="num">差</th></tr>'
    html = f'<table class="vitlib"><thead>{head}</thead><tbody>{body}</tbody></table>'
    return display({"text/html": html}, "tab", label=label, caption=caption, runs=[])


def run_facts(key="aaaabbbbccccdddd", seed=0, stale=False):
    data = {"name": "synthetic", "fingerprint": "0123456789abcdef", "provenance": "合成数据 500 张"}
    return {
        "key": key, "recipe": "best", "seed": seed, "epochs": 3, "data": data | {"train_images": 450, "test_images": 50},
        "device": "Some CPU", "compute": "float32，2 个线程", "versions": {"python": "3.11.2", "torch": "2.15.0"}, "numerics": 1, "stale": stale,
        "seconds": 73.0, "published": False, "failed": None,
    }  # fmt: skip


def origin(name="synthetic", runs=()):
    facts = {"name": name, "provenance": "合成数据 500 张", "fingerprint": "0123456789abcdef",
             "synthetic": name == "synthetic", "train_images": 500, "test_images": 50,
             "warnings": ["类别 猫 少 2 张"], "skipped": []}  # fmt: skip
    return display({"text/plain": "数据"}, "origin", data=facts, runs=list(runs))


def code(source, *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), execution_count=1, metadata={"tags": list(tags)})


def chapter(number="2.1", name="curve", rows=2):
    """Return the cells of a small but complete chapter; its labels end in ``name``."""
    reference = f"见[图](#fig:{name})和[](#tab:{name})。"
    return [
        new_markdown_cell(f"# {number} 一章\n\n{PROSE}\n\n{reference}"),
        code("profile = 'smoke'", tags=["parameters"]),
        code("profile = 'quick'", tags=["injected-parameters"]),
        code("show.set_context(dataset)", origin(runs=[run_facts()]), tags=["hide-input"]),
        new_markdown_cell("## 方法\n\n" + "\n\n".join([PROSE] * 4) + "\n\n$$\\sum_{i=1}^{N} x_i \\in \\mathbb{R}$$"),
        code("x = 1  # 看得见的代码\nprint(x)", new_output("stream", name="stdout", text="输出一行\n"),
             new_output("stream", name="stderr", text="\r训练 10%")),
        new_markdown_cell("## 结果\n\n" + PROSE),
        code("show.figure(...)", figure(f"fig:{name}"), display({"text/markdown": "预览"}, "preview"), tags=["hide-input"]),
        code("show.table(...)", table(f"tab:{name}", rows=rows), tags=["hide-input"]),
        code("show.text(...)", display({"text/markdown": f"由[图](#fig:{name})可见，$p<0.01$。"}, "text"),
             tags=["hide-input"]),
        code("show.headline(...)", display({"text/plain": f"{number} 节：<高 1.0>。"}, "headline"), tags=["hide-input"]),
    ]  # fmt: skip


def write(folder: Path, name: str, cells) -> Path:
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path
