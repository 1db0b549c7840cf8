"""Reading the command line in Chinese: headings, help and errors."""

import argparse
import re
from typing import Any, NoReturn

MESSAGES = (  # argparse's own errors, told in Chinese
    (r"the following arguments are required: (.*)", r"缺少参数：\1"),
    (r"argument (.*?): invalid choice: (.*?) \(choose from (.*)\)", r"参数 \1 不能是 \2；可选：\3"),
    (r"argument (.*?): expected .*", r"参数 \1 后面缺少值"),
    (r"argument (.*?): ignored explicit argument (.*)", r"参数 \1 不带值，去掉 \2"),
    (r"argument (.*?): invalid (.*?) value: (.*)", r"参数 \1 的值 \3 不合要求"),
    (r"unrecognized arguments: (.*)", r"不认识的参数：\1"),
)


def positive(text: str) -> int:
    """Return a whole number from 1 on; raises ValueError, as argparse wants it, for another."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with Chinese headings."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, "用法：" if prefix is None else prefix)

    def format_help(self) -> str:
        return re.sub(r"(?m)^(\S+):$", r"\1：", super().format_help())  # argparse ends its headings in ASCII


class Parser(argparse.ArgumentParser):
    """An argument parser that speaks Chinese."""

    def __init__(self, **options: Any) -> None:
        ours: dict[str, Any] = {"formatter_class": Formatter, "add_help": False, "allow_abbrev": False}
        super().__init__(**(ours | options))
        self._positionals.title, self._optionals.title = "参数", "选项"
        self.add_argument("-h", "--help", action="help", help="显示这份帮助")

    def error(self, message: str) -> NoReturn:
        for pattern, chinese in MESSAGES:
            message = re.sub(pattern, chinese, message)
        self.exit(2, f"错误：{message}。用“{self.prog} --help”查看用法。\n")
