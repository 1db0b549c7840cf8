"""Weights files: safetensors whose story says which model they fit, so that they load by themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlib import checkpoint
from vitlib.errors import UserError
from vitlib.paths import weights_dir
from vitlib.recipe import Recipe
from vitlib.state import build_model


def save_weights(path: Path, state: Mapping[str, Tensor], record: Mapping[str, Any], half: bool = False) -> None:
    """Write a state dict with what is needed to rebuild its model; ``half`` stores floats as float16."""
    kept = ("key", "name", "seed", "recipe", "accuracy", "params", "flops")
    story = {name: record[name] for name in kept}
    story |= {name: record["data"][name] for name in ("class_names", "image_size", "provenance")}
    tensors = {k: v.half() if half and v.is_floating_point() else v for k, v in state.items()}
    checkpoint.save(path, tensors, story)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict, floats as float32, and the story of a weights file. Raises UserError."""
    tensors, story = checkpoint.load(path)
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}, story


def find_weights(key: str) -> Path | None:
    """Return the published weights of the run with this key, or None; UserError for a damaged file."""
    found = sorted(weights_dir().glob("*.safetensors"))
    return next((path for path in found if checkpoint.load(path, story_only=True)[1].get("key") == key), None)


@dataclass(frozen=True)
class Trained:
    """A trained model in evaluation mode, on the CPU, and what it needs to be used."""

    model: nn.Module
    recipe: Recipe
    class_names: tuple[str, ...]
    image_size: int
    story: Mapping[str, Any]


def load_trained(name: str) -> Trained:
    """Load a published model by name (such as ``best``) or a weights or ONNX file by path.

    Raises UserError when neither is there, or the file is not one that this package wrote.
    """
    published = {p.stem: p for kind in ("onnx", "safetensors") for p in weights_dir().glob(f"*.{kind}")}
    path = published.get(name) or Path(name).expanduser()
    if not path.is_file():
        known = f"已发布的模型有：{'、'.join(sorted(published))}" if published else "目前没有已发布的模型"
        raise UserError(f"找不到模型 {name}：它既不是已发布的名字，也不是权重文件；{known}。")
    if path.suffix == ".onnx":
        from vitlib.light.export import load_onnx

        return load_onnx(path)
    state, story = load_weights(path)
    try:
        recipe = Recipe.from_spec(story["recipe"], story["name"])
        model = build_model(recipe, len(story["class_names"]), story["image_size"])
        model.load_state_dict(state)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError) as error:
        raise UserError(f"{path} 不是本项目写出的权重文件，或与这一版的模型不符；请重新取得它。") from error
    if recipe.objective != "classify":
        raise UserError(f"{path} 是预训练（{recipe.objective}）的权重，还不会分类；请用以它为起点训练出的分类模型。")
    return Trained(model.eval(), recipe, tuple(story["class_names"]), story["image_size"], story)
