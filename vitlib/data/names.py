"""The names of CIFAR-10's classes, and which class a folder's name means."""

from collections.abc import Sequence

from vitlib.errors import UserError

CIFAR10_CHINESE = ("飞机", "汽车", "鸟", "猫", "鹿", "狗", "青蛙", "马", "船", "卡车")
CIFAR10_ENGLISH = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def class_ids(folders: Sequence[str], class_names: Sequence[str]) -> dict[str, int]:
    """Map each folder's name to a class: by the class's name, its number or CIFAR-10's English name.

    Raises UserError for a name that means no class.
    """
    meaning = {str(c): c for c in range(len(class_names))}
    if tuple(class_names) == CIFAR10_CHINESE:
        meaning |= {name: c for c, name in enumerate(CIFAR10_ENGLISH)}
    meaning |= {name.casefold(): c for c, name in enumerate(class_names)}
    if unknown := [name for name in folders if name.casefold() not in meaning]:
        raise UserError(
            f"文件夹“{'”“'.join(unknown)}”不对应任何类别。请用类别的名称（{'、'.join(class_names)}）"
            f"或编号（0–{len(class_names) - 1}）命名。"
        )
    return {name: meaning[name.casefold()] for name in folders}
