"""The models by name: ``create_model("vit", num_classes=10)``, as users of timm expect."""

import inspect
import typing

from torch import nn

from ..cost import Cost, count
from ..errors import UserError, nearest
from .a_vit import AdaptiveViT
from .cnn import CNN
from .dino import DINO
from .dynamic_vit import DynamicViT
from .embedding import HALVING
from .mae import MAE
from .original import OriginalViT
from .tome import MergingViT
from .vit import ViT

__all__ = ["Cost", "OriginalViT", "ViT", "check_arguments", "count", "create_model", "model_defaults"]

MODELS: dict[str, type[nn.Module]] = {
    "vit": ViT, "original": OriginalViT, "dynamic_vit": DynamicViT, "a_vit": AdaptiveViT, "tome": MergingViT,
    "cnn": CNN, "mae": MAE, "dino": DINO,
}  # fmt: skip


def model_defaults(name: str) -> dict[str, object]:
    """Return every argument of a model with its default; the keys of stored runs leave defaults out.

    Raises:
        UserError: there is no model of this name.
    """
    if name not in MODELS:
        raise UserError(f"没有名为 {name} 的模型{nearest(name, MODELS)}可用的模型：{'、'.join(MODELS)}。")
    return {argument: default for argument, (default, _) in _arguments(MODELS[name]).items()}


def _arguments(model: type[nn.Module]) -> dict[str, tuple[typing.Any, typing.Any]]:
    """Return default and type of each argument; a model that takes ``**others`` has its parent's, too."""
    own = inspect.signature(model).parameters.values()
    kinds = typing.get_type_hints(model.__init__)
    found = {item.name: (item.default, kinds[item.name]) for item in own if item.kind is not item.VAR_KEYWORD}
    parent = typing.cast(type[nn.Module], model.__base__)
    return found if len(found) == len(own) else _arguments(parent) | found


def create_model(name: str = "vit", **arguments: typing.Any) -> nn.Module:
    """Build a model with fresh random weights (from torch's global generator), in training mode.

    Args:
        name: one of MODELS, ``"vit"`` (modern) and ``"original"`` (the original report's) among them.
        **arguments: these two take num_classes, in_channels, img_size, patch_size, d_model, num_heads,
            num_layers, ffn_hidden_channels and dropout; see ``ViT`` and ``OriginalViT`` for the rest.

    Raises:
        UserError: an unknown model or argument, or a value that does not fit.
    """
    check_arguments(name, arguments)
    _check_together(model_defaults(name) | arguments)
    return MODELS[name](**arguments)


def check_arguments(name: str, arguments: typing.Mapping[str, typing.Any]) -> None:
    """Refuse arguments that the model ``name`` has not, or values that are never good; raises UserError."""
    defaults = model_defaults(name)
    for argument in arguments:
        if argument not in defaults:
            raise UserError(
                f"模型 {name} 没有参数 {argument}{nearest(argument, defaults)}可用的参数：{'、'.join(defaults)}。"
            )
    known = _arguments(MODELS[name])
    for argument, value in arguments.items():
        if fault := _fault(argument, value, known[argument][1]):
            raise UserError(f"模型 {name} 的参数 {argument}={value!r} 不可用：{fault}。")


def _fault(argument: str, value: typing.Any, kind: typing.Any) -> str | None:
    """Return what is wrong with one value, judged by the argument's type, or None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if choices := typing.get_args(kind):
        if type(None) in choices:  # layer_scale
            return None if value is None or (number and value > 0) else "需要正数或 None"
        return None if value in choices else f"只能是 {'、'.join(map(repr, choices))} 之一"
    if kind is bool:
        return None if isinstance(value, bool) else "需要 True 或 False"
    if kind is int:
        least = 0 if argument in ("num_layers", "registers", "merge", "head_dim") else 1
        whole = number and isinstance(value, int) and value >= least
        return None if whole else f"需要不小于 {least} 的整数"
    if argument.endswith("temperature"):
        return None if number and value > 0 else "需要正数"
    if argument == "keep_ratio":
        return None if number and 0 < value <= 1 else "比例须在 (0, 1] 之内"
    return None if number and 0 <= value < 1 else "概率须在 [0, 1) 之内"


def _check_together(given: dict[str, typing.Any]) -> None:
    """Refuse values that are each valid but do not go together."""
    width, heads = given.get("d_model", 0), given.get("num_heads", 1)
    side, patch = given["img_size"], given.get("patch_size", 1)
    if not given.get("head_dim") and width % heads:
        raise UserError(f"d_model={width} 不能被 num_heads={heads} 整除：每个注意力头须分到同样的宽度。")
    if side % patch:
        raise UserError(f"img_size={side} 不能被 patch_size={patch} 整除：图像须恰好切成整数个图像块。")
    if given.get("decoder_width", 0) % 4:
        raise UserError(f"decoder_width={given['decoder_width']} 须是 4 的倍数：解码器有 4 个注意力头。")
    if given.get("small_side", patch) % patch:
        raise UserError(f"small_side={given['small_side']} 不能被 patch_size={patch} 整除。")
    if given.get("pos") == "sincos" and width % 4:
        raise UserError(f"pos='sincos' 需要 d_model 是 4 的倍数，现在是 {width}。")
    if given.get("stem") == "pooled" and width < 11:
        raise UserError(f"stem='pooled' 需要 d_model 不小于 11，现在是 {width}：它的第一层只有 3/32 那么宽。")
    if (stem := given.get("stem")) in HALVING and (patch < 2 or patch & (patch - 1)):
        raise UserError(f"stem='{stem}' 的每一级把边长减半，需要 patch_size 是 2、4、8 等 2 的幂，现在是 {patch}。")
