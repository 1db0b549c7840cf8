"""The console command ``vitlib``: one subcommand a task, help in Chinese, ``--json`` for programs."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitlib import __version__, commands
from vitlib.errors import UserError
from vitlib.parser import Parser, positive


def build_parser() -> Parser:
    """Return the parser of all subcommands."""
    parser = Parser(prog="vitlib", description="可复现的小型 ViT 研究：类别不平衡的 CIFAR-10。")
    parser.add_argument("--version", action="version", version=f"vitlib {__version__}", help="显示版本")
    tasks = parser.add_subparsers(title="子命令", metavar="子命令", required=True, parser_class=Parser)

    def command(name: str, action: Callable[[argparse.Namespace], Any], text: str) -> Parser:
        sub: Parser = tasks.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="在标准输出上只打印一份 JSON")
        sub.set_defaults(action=action)
        return sub

    def data_options(sub: Parser, cut: bool = True) -> None:
        sub.add_argument(
            "--data", default="auto", metavar="来源",
            help="auto（默认）、course、cifar10、cifar10-lt、synthetic，或一个文件夹、zip 的路径",
        )  # fmt: skip
        if cut:
            sub.add_argument("--images", type=positive, metavar="张数", help="只用这么多训练图像（按类别比例抽取）")
            sub.add_argument("--epochs", type=int, metavar="轮数", help="训练轮数，代替配方自己的；微调取其五分之一")

    sub = command("data", commands.show_data, "检查并描述数据")
    sub.add_argument("source", nargs="?", default="auto", metavar="来源", help="同其他子命令的 --data，默认 auto")
    sub.add_argument("--skip-unreadable", action="store_true", help="跳过读不出的图像，计数并列出")

    sub = command("train", commands.train, "按配方训练一次（训练过的直接取出）")
    sub.add_argument("recipe", metavar="配方", help="配方的名字，如 vit、best、cpu、original-vanilla")
    sub.add_argument("--seed", type=int, default=0, metavar="种子", help="随机种子，默认 0")
    sub.add_argument("--save", type=Path, metavar="文件", help="把权重另存为 safetensors 文件")
    sub.add_argument("--half", action="store_true", help="另存的权重用 16 位浮点数，文件小一半")
    data_options(sub)

    sub = command("sweep", commands.sweep, "训练一份计划里还缺的运行")
    sub.add_argument("plan", metavar="计划", help="2.1、2.2、2.3、2.4 或 all")
    sub.add_argument("--profile", default="quick", metavar="档位", help="smoke、quick（默认）、hours、days、full、auto")
    sub.add_argument("--seeds", type=positive, metavar="个数", help="种子个数，代替档位自己的")
    sub.add_argument("--tier", type=positive, metavar="层", help="只做到第几层（--dry-run 列出各层）")
    sub.add_argument("--budget", metavar="时间", help="用完就干净地停下，如 90s、9m、2h")
    sub.add_argument("--workers", type=positive, default=1, metavar="个数", help="同时训练的进程数，默认 1")
    sub.add_argument("--export", type=Path, metavar="文件夹", help="把结果打包成至多 8 个文件，供 runs import 导入")
    sub.add_argument("--publish", action="store_true", help="把记录发布到 report/results/")
    sub.add_argument("--dry-run", action="store_true", help="不训练，只列出各层的运行和估计时间")
    data_options(sub)

    sub = command("runs", commands.runs, "列出运行记录，或从别的机器导入（在源码仓库里同时发布到 report/results/）")
    sub.add_argument("verb", nargs="?", choices=["import"], metavar="import", help="导入 sweep --export 写出的文件夹")
    sub.add_argument("folder", nargs="?", type=Path, metavar="文件夹", help="要导入的文件夹")

    sub = command("evaluate", commands.evaluate, "在一批按类别分好文件夹的图像上评估模型")
    sub.add_argument("model", metavar="模型", help="已发布的名字（如 best）或权重文件")
    sub.add_argument(
        "--data", required=True, metavar="路径", help="文件夹或 zip（类别以编号或名字命名），或 course 等数据的测试集"
    )

    sub = command("predict", commands.predict, "识别图像")
    sub.add_argument(
        "images", nargs="+", type=Path, metavar="图像", help="图像文件，JPEG、PNG、WEBP 或 BMP，至多 6,700 万像素"
    )
    sub.add_argument("--model", default="best", metavar="模型", help="已发布的名字或权重文件，默认 best")

    sub = command("bench", commands.measure, "与其他实现比较速度（需要源码仓库和 bench 附加依赖）")
    sub.set_defaults(benchmark="bench")
    sub.add_argument("--full", action="store_true", help="完整的网格：三种批大小，每个模型都编译（费时得多）")
    sub.add_argument("--models", nargs="+", metavar="模型", help="只量这些实现，如 ours timm；默认全部")
    sub.add_argument("--seconds", type=float, default=20.0, metavar="秒", help="每组轮流计时的时间，默认 20")
    sub.add_argument("--out", type=Path, metavar="文件", help="把全部数值写成 JSON 文件")
    data_options(sub, cut=False)

    sub = command("speedrun", commands.measure, "从内存中的图像到评估完毕的模型，达到目标准确率要多久（需要源码仓库）")
    sub.set_defaults(benchmark="speedrun")
    sub.add_argument("--seeds", type=positive, default=3, metavar="个数", help="种子个数，默认 3")
    sub.add_argument("--target", type=float, nargs="*", metavar="准确率", help="只做这些目标，如 0.867")
    sub.add_argument("--out", type=Path, metavar="文件", help="把全部数值写成 JSON 文件")
    data_options(sub)

    sub = command("export", commands.export, "导出模型为 ONNX 与 torch.export 文件，并在测试集上逐张核对")
    sub.add_argument("model", metavar="模型", help="已发布的名字（如 best）或权重文件")
    sub.add_argument("--out", type=Path, metavar="文件", help="ONNX 文件，默认 模型名.onnx；.pt2 文件写在它旁边")
    sub.add_argument("--int8", action="store_true", help="再写一个静态量化的 .int8.onnx 文件，用验证图像校准")
    data_options(sub, cut=False)

    sub = command("report", commands.report, "运行四个笔记本并生成 HTML 和 PDF 报告")
    profiles = "auto（默认）、smoke、quick、hours、days、full、published"
    sub.add_argument("--profile", default="auto", metavar="档位", help=profiles)
    sub.add_argument("--out", type=Path, metavar="文件夹", help="报告写到哪里，默认 build/")
    sub.add_argument("--accept", nargs="*", default=[], metavar="运行", help="published 档中接受数值版本较旧的运行")
    sub.add_argument("--publish", action="store_true", help="把报告用到的运行记录与测量发布到 report/results/")
    data_options(sub, cut=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status: 0, 2 for a user's error (also one of many files), 130 when interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Chinese gets question marks, no trace
    options = build_parser().parse_args(arguments)
    try:
        result = options.action(options)
        if options.json:
            print(json.dumps(result, ensure_ascii=str(sys.stdout.encoding).lower() != "utf-8", allow_nan=False))
        sys.stdout.flush()
        if faults := result.get("errors"):  # the work is done but for these
            raise UserError("\n错误：".join(faults))
    except BrokenPipeError:  # the reader, such as `head`, has enough; a later flush must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print(f"错误：{error}", file=sys.stderr)
        return 2
    except OSError as error:
        from vitlib.data.tree import reason

        where = f"{error.filename} " if error.filename else ""
        print(f"错误：系统拒绝读写：{where}{reason(error)}；请检查路径、权限和剩余空间。", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == __package__:
            raise
        print(f"错误：这个子命令要用的 {error.name} 没有安装；请照 README 安装环境（make setup）。", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("已中断；若在训练，再次运行会从上一个检查点（约每分钟一个）接着做。", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
