"""Write the results tables of the two READMEs from the published records: ``python docs/results.py``."""

import re
from pathlib import Path

from labreport import metrics, others
from vitlib.paths import results_dir
from vitlib.record import Run, read_record

ROOT = Path(__file__).resolve().parent.parent
HEADS = {
    "README.md": (
        "Test accuracy (%) on the 4,870 images of `CIFAR10_balance`, with the 95 % interval over seeds and test images:",
        "| recipe | parameters | training images | epochs | seeds | accuracy | device |",
    ),
    "README.zh-CN.md": (
        "`CIFAR10_balance` 全部 4,870 张图像上的测试准确率（%），方括号里是种子与测试图像的 95 % 区间：",
        "| 配方 | 参数量 | 训练图像 | 轮数 | 种子 | 准确率 | 设备 |",
    ),
}
RULE = "|---|---:|---:|---:|---:|---:|---|"


def rows(runs: list[Run]) -> list[str]:
    """Return a line of the table for each recipe and length of training, best first."""
    lines = []
    for group in others.on_whole_data(run for run in runs if not others.is_rung(run)).values():
        accuracy = metrics.accuracy(group)
        interval = f" [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]" if accuracy.n > 1 else ""
        devices = ", ".join(sorted({run.device for run in group}))
        first = group[0]
        start = first.recipe.init_from  # its epochs were learned from, too
        epochs = f"{start.epochs} + {first.epochs}" if start else first.epochs
        cells = [f"`{first.name}`", f"{first.params:,}", f"{first.data['train_images']:,}", epochs, accuracy.n]
        cells += [accuracy.percent + interval, devices]
        lines.append((-accuracy.mean, "| " + " | ".join(map(str, cells)) + " |"))
    return [line for _, line in sorted(lines)]


def with_results(text: str, name: str, lines: list[str]) -> str:
    """Return a README's text with the block between its two markers written anew."""
    block = "\n".join([HEADS[name][0], "", HEADS[name][1], RULE, *lines]) if lines else ""
    return re.sub(
        r"<!-- results -->.*<!-- /results -->",
        lambda _: f"<!-- results -->\n{block}\n<!-- /results -->",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Rewrite both files."""
    lines = rows([read_record(path, published=True) for path in sorted(results_dir().glob("*.json"))])
    for name in HEADS:
        path = ROOT / name
        path.write_text(with_results(path.read_text("utf-8"), name, lines), "utf-8")


if __name__ == "__main__":
    main()
