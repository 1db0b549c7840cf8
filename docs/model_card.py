"""Write the card of the published weights, in Chinese, from their records: ``python docs/model_card.py``."""

from pathlib import Path

import numpy as np

from labreport import metrics, others, stats
from vitlib.paths import results_dir, weights_dir
from vitlib.recipes import RECIPES
from vitlib.record import Run, read_record
from vitlib.weights import load_weights

HEAD = """# 已发布的权重

由 `python docs/model_card.py` 从权重文件与运行记录生成。用 `vitlib predict 图像 --model 名字`、
`vitlib evaluate 名字 --data 文件夹`、`vitlib export 名字` 使用，格式是 safetensors，浮点数存为 16 位。

**用途**　教学与复现：十类小图像的分类，检验报告里的数字，作为蒸馏、剪枝与量化的起点。

**局限**　只认识十个类别，其他东西也会被归入其中一类；从 32×32 的图像学来，别的大小先缩放再识别，照片的构图与训练图像
相差很大时准确率没有保证；训练集的类别不平衡（最大类是最小类的 {imbalance:.2f} 倍），少数类的召回率见下表；置信度未经校准；
没有检验过对抗样本与分布之外的输入，不可用于任何影响人的决定。

**数据**　只用课程的 `CIFAR10_imbalanced` 训练，从零开始；测试集 `CIFAR10_balance` 每个种子只在最后读一次。
图像的权利属于原作者，本仓库不含图像。
"""


def card(name: str, path: Path, runs: list[Run]) -> str:
    """Return the section of one weights file; ``runs`` are all published records."""
    story = load_weights(path)[1]
    run = next(run for run in runs if run.key == story["key"])
    seeds = [each for each in runs if each.name == run.name and each.data["fingerprint"] == run.data["fingerprint"]]
    over_seeds = metrics.accuracy(seeds)
    interval = f"，95 % 区间 [{100 * over_seeds.low:.1f}, {100 * over_seeds.high:.1f}]" if over_seeds.n > 1 else ""
    classes = run.data["class_names"]
    scores = metrics.scores(run.labels, run.predicted, run.confidence, len(classes))
    recall = metrics.per_class_recall(run.labels, run.predicted, len(classes))
    rows = [
        f"| {label} | {size:,} | {100 * value:.1f} |"
        for label, size, value in zip(classes, run.data["class_counts"], recall, strict=True)
    ]
    known = {str(recipe.spec()): recipe.name for recipe in RECIPES.values()}  # records keep no name of what came before
    recipes = {role: known.get(str(start.spec()), start.name) for role, start in run.recipe.starts().items()}
    spec = "、".join(f"{field} = {recipes.get(field, value)}" for field, value in run.recipe.spec().items())
    beside = against_best(seeds, runs) if name != "best" else how_chosen(run, runs)
    return f"""
## `{name}`

| | |
|---|---|
| 配方 | `{run.name}`，种子 {run.seed} |
| 参数量；文件 | {run.params:,}；{path.stat().st_size / 1e6:.2f} MB |
| 一张图像的计算量 | {run.flops / 1e6:.0f} MFLOPs |
| 训练 | {run.data["train_images"]:,} 张图像，{run.epochs} 轮，{run.device} |
| 测试准确率 | {100 * run.accuracy:.1f} %（{run.data["test_images"]:,} 张，没有测试时增强，权重为 32 位；存成 16 位后可差 0.1） |
| 同一配方的 {over_seeds.n} 个种子 | 平均 {100 * over_seeds.mean:.1f} %{interval} |
| 宏平均 F1；校准误差（ECE） | {scores["macro_f1"]:.3f}；{scores["ece"]:.3f} |
{beside}| 数据 | {run.data["provenance"]} |

设定：{spec}

| 类别 | 训练集中的张数 | 召回率 / % |
|---|---:|---:|
{chr(10).join(rows)}

召回率最低的类别是{classes[int(np.argmin(recall))]}。
"""


def how_chosen(run: Run, runs: list[Run]) -> str:
    """Return the line that says what the validation split has to do with the choice of this run's recipe."""
    best, judged = others.titled(run), others.on_validation(runs)
    lacking = others.contenders(others.on_whole_data(runs), best, judged)
    told = others.chosen_told(judged, best) + (
        f"{'、'.join(lacking)}还没有在验证集上与它比较，所以这个选择没有完全避开测试结果（报告 2.1 节）。"
        if lacking
        else ""
    )
    made_of = others.blocks_told({best: run.recipe}, runs) if others.is_hybrid(run.recipe) and told else ""
    return (f"| 怎样选定 | {told} |\n" if told else "") + (f"| 编码器块 | {made_of} |\n" if made_of else "")


def against_best(seeds: list[Run], runs: list[Run]) -> str:
    """Return the line that compares a recipe with that of the weights ``best``; none on other test images."""
    key = load_weights(weights_dir() / "best.safetensors")[1]["key"]
    best = next(run for run in runs if run.key == key)
    alike = [run for run in runs if run.name == best.name and run.data["fingerprint"] == best.data["fingerprint"]]
    if len(best.labels) != len(seeds[0].labels):
        return ""
    found = stats.compare([run.correct for run in seeds], [run.correct for run in alike], (seeds[0].name, best.name))
    return (
        f"| 与 `best` 相比 | 参数量的 1/{best.params / seeds[0].params:.1f}，"
        f"计算量的 1/{best.flops / seeds[0].flops:.1f}；{found.sentence} |\n"
    )


def document() -> str:
    """Return the whole card."""
    runs = [read_record(path, published=True) for path in sorted(results_dir().glob("*.json"))]
    counts = max((run.data["class_counts"] for run in runs), key=sum)
    cards = [card(path.stem, path, runs) for path in sorted(weights_dir().glob("*.safetensors"))]
    return HEAD.format(imbalance=max(counts) / min(counts)) + "".join(cards)


def main() -> None:
    """Write ``report/weights/MODEL_CARD.md``."""
    (weights_dir() / "MODEL_CARD.md").write_text(document(), "utf-8")


if __name__ == "__main__":
    main()
