"""The console command ``vitlib``: one subcommand a task, help in Chinese, ``--json`` for programs."""

import argparse
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitlib import __version__
from vitlib.errors import UserError
from vitlib.parser import Parser


def build_parser() -> Parser:
    """Return the parser of all subcommands."""
    parser = Parser(prog="vitlib", description="可复现的小型 ViT 研究：类别不平衡的 CIFAR-10。")
    parser.add_argument("--version", action="version", version=f"vitlib {__version__}", help="显示版本")
    commands = parser.add_subparsers(title="子命令", metavar="子命令", required=True, parser_class=Parser)

    def command(name: str, action: Callable[[argparse.Namespace], Any], text: str) -> Parser:
        sub: Parser = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="在标准输出上只打印一份 JSON")
        sub.set_defaults(action=action)
        return sub

    def data_options(sub: Parser, cut: bool = True) -> None:
        sub.add_argument(
            "--data", default="auto", metavar="来源",
            help="auto（默认）、course、cifar10、cifar10-lt、synthetic，或一个文件夹、zip 的路径",
        )  # fmt: skip
        if cut:
            sub.add_argument("--images", type=int, metavar="张数", help="只用这么多训练图像（按类别比例抽取）")
            sub.add_argument("--epochs", type=int, metavar="轮数", help="训练轮数，代替配方自己的")

    sub = command("data", show_data, "检查并描述数据")
    sub.add_argument("source", nargs="?", default="auto", metavar="来源", help="同其他子命令的 --data，默认 auto")
    sub.add_argument("--skip-unreadable", action="store_true", help="跳过读不出的图像，计数并列出")

    sub = command("train", train, "按配方训练一次（训练过的直接取出）")
    sub.add_argument("recipe", metavar="配方", help="配方的名字，如 vit、best、cpu、original-vanilla")
    sub.add_argument("--seed", type=int, default=0, metavar="种子", help="随机种子，默认 0")
    sub.add_argument("--save", type=Path, metavar="文件", help="把权重另存为 safetensors 文件")
    sub.add_argument("--half", action="store_true", help="另存的权重用 16 位浮点数，文件小一半")
    data_options(sub)

    sub = command("sweep", sweep, "训练一份计划里还缺的运行")
    sub.add_argument("plan", metavar="计划", help="2.1、2.2、2.3、2.4 或 all")
    sub.add_argument("--profile", default="quick", metavar="档位", help="smoke、quick（默认）、full 或 auto")
    sub.add_argument("--seeds", type=int, metavar="个数", help="种子个数，代替档位自己的")
    sub.add_argument("--tier", type=int, metavar="层", help="只做到第几层（1-9）")
    sub.add_argument("--budget", metavar="时间", help="用完就干净地停下，如 90s、9m、2h")
    sub.add_argument(
        "--workers", type=int, default=1, metavar="个数", help="几个进程同时训练（GPU 上的小模型），默认 1"
    )
    sub.add_argument("--export", type=Path, metavar="文件夹", help="把结果打包成至多 8 个文件，供 runs import 导入")
    sub.add_argument("--publish", action="store_true", help="把记录发布到 report/results/")
    sub.add_argument("--dry-run", action="store_true", help="不训练，只列出各层的运行和估计时间")
    data_options(sub)

    sub = command("runs", runs, "列出运行记录，或从别的机器导入")
    sub.add_argument("verb", nargs="?", choices=["import"], metavar="import", help="导入 sweep --export 写出的文件夹")
    sub.add_argument("folder", nargs="?", type=Path, metavar="文件夹", help="要导入的文件夹")

    sub = command("evaluate", evaluate, "在一批按类别分好文件夹的图像上评估模型")
    sub.add_argument("model", metavar="模型", help="已发布的名字（如 best）或权重文件")
    sub.add_argument("--data", required=True, metavar="路径", help="文件夹或 zip；类别以编号或名字命名")

    sub = command("predict", predict, "识别图像")
    sub.add_argument("images", nargs="+", type=Path, metavar="图像", help="图像文件，大小和格式不限")
    sub.add_argument("--model", default="best", metavar="模型", help="已发布的名字或权重文件，默认 best")

    sub = command("bench", bench, "与其他实现比较速度（需要源码仓库和 bench 附加依赖）")
    sub.add_argument("--full", action="store_true", help="完整的网格：三种批大小，每个模型都编译（默认只在 GPU 上）")
    sub.add_argument("--seconds", type=float, default=20.0, metavar="秒", help="每组轮流计时的时间，默认 20")
    sub.add_argument("--out", type=Path, metavar="文件", help="把全部数值写成 JSON 文件")
    data_options(sub, cut=False)

    sub = command("speedrun", speedrun, "从内存中的图像到评估完毕的模型，达到目标准确率要多久")
    sub.add_argument("--seeds", type=int, default=3, metavar="个数", help="种子个数，默认 3")
    sub.add_argument("--target", type=float, nargs="*", metavar="准确率", help="只做这些目标，如 0.867")
    sub.add_argument("--out", type=Path, metavar="文件", help="把全部数值写成 JSON 文件")
    data_options(sub)

    sub = command("export", export, "导出模型为 ONNX 与 torch.export 文件，并在测试集上逐张核对")
    sub.add_argument("model", metavar="模型", help="已发布的名字（如 best）或权重文件")
    sub.add_argument("--out", type=Path, metavar="文件", help="ONNX 文件，默认 模型名.onnx；.pt2 文件写在它旁边")
    sub.add_argument("--int8", action="store_true", help="再写一个静态量化的 .int8.onnx 文件，用训练图像校准")
    data_options(sub, cut=False)

    sub = command("report", report, "运行四个笔记本并生成 HTML 和 PDF 报告")
    sub.add_argument("--profile", default="auto", metavar="档位", help="auto（默认）、smoke、quick、full、published")
    sub.add_argument("--out", type=Path, metavar="文件夹", help="报告写到哪里，默认 build/")
    sub.add_argument("--accept", nargs="*", default=[], metavar="运行", help="published 档中接受数值版本较旧的运行")
    data_options(sub, cut=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status: 0, 2 for a user's error, 130 when interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Chinese gets question marks, no trace
    options = build_parser().parse_args(arguments)
    try:
        result = options.action(options)
    except UserError as error:
        print(f"错误：{error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"错误：系统拒绝读写（{error}）；请检查路径、权限和剩余空间。", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("已中断；训练到的地方存有检查点，再次运行会接着做。", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(result, ensure_ascii=str(sys.stdout.encoding).lower() != "utf-8", allow_nan=False))
    return 0


def show_data(options: argparse.Namespace) -> dict[str, Any]:
    """Load a data set and describe it."""
    from vitlib.data import describe, load

    facts = describe(load(options.source, skip_unreadable=options.skip_unreadable))
    if not options.json:
        print(
            f"{facts['provenance']}\n数据指纹 {facts['fingerprint']}，图像 {facts['image_size']}×{facts['image_size']}"
        )
        for row in facts["classes"]:
            print(f"  {row['id']}  {row['name']}\t训练 {row['train']:>6,}\t测试 {row['test']:>6,}")
        print(
            f"  合计\t训练 {facts['train_images']:>6,}\t测试 {facts['test_images']:>6,}\t不平衡度 {facts['imbalance']:.2f}"
        )
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
    epochs = () if options.epochs is None else tuple((model, options.epochs) for model in ("original", "vit"))
    profile = Profile("train", options.images, None, epochs)
    run = Store().get(profile.fit(recipe), options.seed, _load(options), weights=options.save is not None)
    if options.save:
        save_weights(options.save, run.load_state(), run.record, half=options.half)
    return _tell([run.summary], options)[0]


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Train what a plan lacks, or price it."""
    from vitlib import plans
    from vitlib.exchange import export
    from vitlib.store import Store
    from vitlib.study import resolve
    from vitlib.sweep import price_list, sweep

    given = {"images": options.images, "epochs": options.epochs, "seeds": options.seeds, "tier": options.tier}
    budget = _seconds(options.budget)
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
    done = sweep(todo, data, store, budget=budget, workers=options.workers)
    if options.publish:
        for run in done.runs:
            store.publish(run)
    left_out = []
    if options.export:
        # an unfinished run goes on elsewhere from its checkpoint, or from what is trained before it
        starts = [replace(job, recipe=r, seed=s) for job in done.left for _, r, s in job.recipe.before(job.seed)]
        keys = [job.recipe.key(job.seed, data.fingerprint) for job in [*todo, *starts]]
        left_out = export(store, keys, options.export)
    rows = _tell([run.summary for run in done.runs], options)
    left = [f"{job.recipe.name}（种子 {job.seed}）" for job in done.left]
    for text, names in (("时间用完，还没做完", left), ("没有装进导出文件", left_out)):
        if names:
            print(f"{text}：{'、'.join(names)}", file=sys.stderr)
    return {"runs": rows, "left": left, "not_exported": left_out}


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
    from vitlib.data import load_images
    from vitlib.use import evaluate_images
    from vitlib.weights import load_trained

    trained = load_trained(options.model)
    images = load_images(Path(options.data), trained.class_names, image_size=trained.image_size)
    result = evaluate_images(trained, images)
    if not options.json:
        print(f"准确率 {result['accuracy']:.2%}（{result['images']:,} 张图像）")
        for name, value in result["per_class"].items():
            print(f"  {name}\t{'没有图像' if value is None else f'{value:.2%}'}")
    return result


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """Name what is on some images."""
    from vitlib.use import predict_files
    from vitlib.weights import load_trained

    rows = predict_files(load_trained(options.model), options.images)
    if not options.json:
        for row in rows:
            print(f"{row['image']}\t{row['class']}\t{row['confidence']:.1%}")
    return {"predictions": rows}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Export a model and check the files on the test images."""
    from vitlib.light.export import export
    from vitlib.weights import load_trained

    data, out = _load(options, cut=False), options.out or Path(f"{Path(options.model).stem}.onnx")
    facts = export(load_trained(options.model), data, out, int8=options.int8)
    for row in [] if options.json else facts["files"]:
        print(f"{row['path']}\t{row['bytes']:,} 字节\t{facts['images']:,} 张图像中 {row['same_answers']:.2%} 答案相同")
    return facts


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Build the report."""
    from vitlib.report.build import build_report
    from vitlib.study import settle

    profile, data = settle(options.profile, options.data, options.accept)
    html = build_report(profile=profile, data=data, out_dir=options.out)
    pdf = html.with_suffix(".pdf")
    return {"html": str(html), "pdf": str(pdf) if pdf.exists() else None, "profile": profile, "data": data}


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Measure speed against the peers."""
    _need_checkout()
    from benchmarks.bench import run, tell
    from vitlib.device import pick

    device = pick()
    found = run(_load(options), device, full=options.full or device.type == "cuda", seconds=options.seconds)
    return _measured(found, tell, options)


def speedrun(options: argparse.Namespace) -> dict[str, Any]:
    """Time the way to an accuracy."""
    _need_checkout()
    from benchmarks.speedrun import plan, run, tell
    from vitlib.device import pick

    device = pick()
    todo = plan(device, options.target, options.epochs)
    return _measured(run(_load(options), device, options.seeds, todo), tell, options)


def _need_checkout() -> None:
    from vitlib.paths import checkout

    if checkout() is None:
        raise UserError("这个子命令的代码在源码仓库的 benchmarks/ 里，不随安装包发布；请在仓库中运行。")


def _measured(
    found: dict[str, Any], tell: Callable[[dict[str, Any]], None], options: argparse.Namespace
) -> dict[str, Any]:
    if options.out:
        from vitlib.checkpoint import write_atomic

        write_atomic(options.out, json.dumps(found, ensure_ascii=False).encode())
    if not options.json:
        tell(found)
    return found


def _load(options: argparse.Namespace, cut: bool = True) -> Any:
    from vitlib.data import load

    data = load(options.data)
    return data.subset(options.images) if cut and getattr(options, "images", None) is not None else data


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise UserError(f"看不懂时间 {text}；请写成 90s、9m 或 2h 这样。")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _tell(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    if not options.json:
        for row in rows:
            accuracy = "没有准确率" if row["accuracy"] is None else f"测试准确率 {row['accuracy']:.2%}"
            failed = f"，失败：{row['failed']}" if row["failed"] else ""
            print(
                f"{row['recipe']}\t种子 {row['seed']}\t{row['epochs']} 轮\t{row['train_images']:,} 张\t{accuracy}{failed}"
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
