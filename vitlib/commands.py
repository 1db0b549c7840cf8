"""What each subcommand of ``vitlib`` does: from the parsed options to what ``--json`` prints.

Each imports what it needs when it runs, so that ``vitlib --help`` is quick and a machine without the report's
libraries can train.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from vitlib.errors import UserError


def show_data(options: argparse.Namespace) -> dict[str, Any]:
    """Load a data set and describe it."""
    from vitlib.data import describe, load

    facts = describe(load(options.source, skip_unreadable=options.skip_unreadable))
    if not options.json:
        print("{provenance}\n数据指纹 {fingerprint}，图像 {image_size}×{image_size}".format(**facts))
        for row in facts["classes"]:
            print(f"  {row['id']}  {row['name']}\t训练 {row['train']:>6,}\t测试 {row['test']:>6,}")
        print("  合计\t训练 {train_images:>6,}\t测试 {test_images:>6,}\t不平衡因子 {imbalance:.2f}".format(**facts))
    for line in [*facts["warnings"], *facts["skipped"]]:
        print(f"注意：{line}", file=sys.stderr)
    return facts


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train one recipe, or fetch the run when the store has it."""
    from vitlib.plans import Profile
    from vitlib.recipes import recipe_named
    from vitlib.store import Store
    from vitlib.weights import save_weights

    recipe = recipe_named(options.recipe)
    if options.half and not options.save:
        raise UserError("--half 说的是 --save 存下的权重；请同时给出 --save，或去掉 --half。")
    if options.save and options.save.suffix != ".safetensors":
        raise UserError(f"--save 存的是 safetensors 文件，{options.save} 的名字须以 .safetensors 结尾。")
    _ready(options.save)
    epochs = () if options.epochs is None else tuple((model, options.epochs) for model in ("original", "vit"))
    profile = Profile("train", options.images, None, epochs)
    run = Store().get(profile.fit(recipe), options.seed, _load(options), weights=options.save is not None)
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        save_weights(options.save, run.load_state(), run.record, half=options.half)
    return _tell([run.summary], options)[0]


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Train what a plan lacks, or price it."""
    from vitlib import plans
    from vitlib.exchange import export
    from vitlib.store import Store
    from vitlib.sweep import missing, price_list, resolve, sweep

    given = {"images": options.images, "epochs": options.epochs, "seeds": options.seeds, "tier": options.tier}
    begun, budget = time.monotonic(), _seconds(options.budget)
    _ready(options.export and options.export / "any")
    data, store = _load(options, cut=False), Store()
    profile = resolve(options.profile, data, **given)
    todo, data = plans.jobs(options.plan, profile), profile.cut(data)
    if options.dry_run:
        prices = price_list(todo, data, store)
        if not options.json:
            for row in prices["jobs"]:
                state = "已有" if row["done"] else "待训练"
                print(f"第 {row['tier']} 层\t{row['recipe']}\t种子 {row['seed']}\t{row['epochs']} 轮\t{state}")
            for row in prices["tiers"]:
                print(
                    f"第 {row['tier']} 层（{plans.TIERS[row['tier']]}）：{row['missing']} 次待训练，"
                    f"估计本机 {row['here_minutes']:.1f} 分钟，H100 {row['h100_minutes']:.1f} 分钟"
                )
        return prices
    left_out: list[str] = []
    try:
        budget = budget and max(0.0, budget - (time.monotonic() - begun))  # loading the data is on the clock, too
        done = sweep(todo, data, store, budget=budget, workers=options.workers)
    finally:  # what is done is carried away also when a job raises or the user interrupts
        if options.export:
            # an unfinished run goes on elsewhere from its checkpoint, or from what is trained before it
            wanted = [(job.factor, job.recipe, job.seed) for job in todo]
            wanted += [(job.factor, *it) for job in missing(todo, data, store) for it in _before(job.recipe, job.seed)]
            keys = [r.key(seed, plans.tailed(data, factor).fingerprint) for factor, r, seed in wanted]
            if left_out := export(store, keys, options.export):
                print(f"没有装进导出文件：{'、'.join(left_out)}", file=sys.stderr)
    if options.publish:
        for run in done.runs:
            store.publish(run)
    rows = _tell([run.summary for run in done.runs], options)
    left = [f"{job.recipe.name}（种子 {job.seed}）" for job in done.left]
    if left:
        print(f"没有做完（时间用完，或先要训练的运行失败了）：{'、'.join(left)}", file=sys.stderr)
    return {"runs": rows, "left": left, "not_exported": left_out}


def _before(recipe: Any, seed: int) -> list[tuple[Any, int]]:
    """Return what is trained before a run, its teacher's teacher and so on included."""
    direct = [(start, its) for _, start, its in recipe.before(seed)]
    return [*direct, *(found for start, its in direct for found in _before(start, its))]


def runs(options: argparse.Namespace) -> dict[str, Any]:
    """List all runs, or import some."""
    from vitlib.exchange import import_runs
    from vitlib.store import Store

    if options.verb and options.folder is None:
        raise UserError("runs import 后面要写文件夹，即 vitlib sweep --export 写出的那个。")
    found = import_runs(Store(), options.folder) if options.verb else Store().all()
    return {"runs": _tell([run.summary for run in found], options)}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate a model on a folder or zip of classes."""
    from vitlib.data import SOURCES, load_images
    from vitlib.use import evaluate_images
    from vitlib.weights import load_trained

    trained = load_trained(options.model)
    data = _load(options, cut=False) if options.data in SOURCES else None
    if data and (data.class_names, data.image_size) != (trained.class_names, trained.image_size):
        raise UserError(f"模型 {options.model} 的类别或图像大小与数据 {options.data} 的不同，不能在其上评估。")
    images = data.test if data else load_images(Path(options.data), trained.class_names, image_size=trained.image_size)
    result = evaluate_images(trained, images)
    if not options.json:
        print(f"准确率 {100 * result['accuracy']:.2f} %（{result['images']:,} 张图像）")
        for name, value in result["per_class"].items():
            print(f"  {name}\t{'没有图像' if value is None else f'{100 * value:.2f} %'}")
    return result


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """Name what is on some images."""
    from vitlib.use import predict_files
    from vitlib.weights import load_trained

    rows, faults = predict_files(load_trained(options.model), options.images)
    for row in [] if options.json else rows:
        print(f"{row['image']}\t{row['class']}\t{100 * row['confidence']:.1f} %")
    return {"predictions": rows, "errors": faults}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Export a model and check the files on the test images."""
    from vitlib.light.export import export
    from vitlib.weights import load_trained

    out = options.out or Path(f"{Path(options.model).stem}.onnx")
    _ready(out)
    trained, data = load_trained(options.model), _load(options, cut=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = export(trained, data, out, int8=options.int8)
    for row in [] if options.json else facts["files"]:
        same = f"{100 * row['same_answers']:.2f} %"
        print(f"{row['path']}\t{row['bytes']:,} 字节\t{facts['images']:,} 张图像中 {same} 答案相同")
    return facts


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Build the report."""
    from labreport.analysis.measured import publish_report
    from labreport.assembly.build import build_report
    from labreport.study import settle

    if options.publish and options.profile == "published":
        raise UserError("published 档用的就是已发布的记录，没有可以发布的；请去掉 --publish，或换一个档位。")
    profile, data = settle(options.profile, options.data, options.accept)
    html = build_report(profile=profile, data=data, out_dir=options.out)
    new = publish_report(profile, data) if options.publish else []
    pdf = html.with_suffix(".pdf")
    made = {"html": str(html), "pdf": str(pdf) if pdf.exists() else None}
    return made | {"profile": profile, "data": data, "published": [str(path) for path in new]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run a benchmark: bench or speedrun."""
    from vitlib.paths import checkout

    if checkout() is None:
        raise UserError("这个子命令的代码在源码仓库的 benchmarks/ 里，不随安装包发布；请在仓库中运行。")
    _ready(options.out)
    from benchmarks.commands import COMMANDS

    return COMMANDS[options.benchmark](options, _load(options))


def _load(options: argparse.Namespace, cut: bool = True) -> Any:
    from vitlib.data import load

    data = load(options.data).subset(getattr(options, "images", None) if cut else None)
    for line in (f"数据：{data.provenance}。", *(f"注意：{warning}" for warning in data.warnings)):
        print(line, file=sys.stderr)
    return data


def _ready(path: Path | None) -> None:
    """Refuse a place where nothing can be written before the work, not after it."""
    there = path and next(folder for folder in path.absolute().parents if folder.exists())
    if there and path and (path.is_dir() or not (there.is_dir() and os.access(there, os.W_OK))):
        raise UserError(f"{path} 是已有的文件夹，或者 {there} 里不能写入；请换一个文件名或位置，或检查权限。")


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)):
        raise UserError(f"看不懂时间 {text}；请写成 90s、9m 或 2h 这样。")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _tell(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    if not options.json:
        for row in rows:
            accuracy = "没有准确率" if row["accuracy"] is None else f"测试准确率 {100 * row['accuracy']:.2f} %"
            failed = f"，失败：{row['failed']}" if row["failed"] else ""
            data = f"{row['data']} {row['train_images']:,} 张"
            print(f"{row['recipe']}\t种子 {row['seed']}\t{row['epochs']} 轮\t{data}\t{accuracy}{failed}")
    return rows
