"""Finding where a number stopped being finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def first_nonfinite(model: nn.Module, step: Callable[[], Tensor]) -> tuple[str, str]:
    """Repeat a training step's forward pass and name what was first not finite.

    ``step`` runs the forward pass and returns the loss; it must set its own random seed, so that
    dropout and attention noise repeat. Returns the module's name as in ``named_modules`` (or
    ``loss``) and a short Chinese description of what it met.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return name, "参数已含非有限值"
    found: list[tuple[str, str]] = []
    with torch.no_grad(), _watching(model, found):
        loss = step()
    if found:
        return found[0]
    return ("loss", "损失非有限") if not torch.isfinite(loss) else ("gradient", "前向有限，梯度非有限")


@contextmanager
def _watching(model: nn.Module, found: list[tuple[str, str]]) -> Iterator[None]:
    def watch(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                kind = "NaN" if output.isnan().any() else "Inf"
                found.append((name, f"{type(module).__name__} 的输出首先出现 {kind}"))

        return hook

    # children finish before their parents, so the first entry is the innermost culprit
    hooks = [module.register_forward_hook(watch(name or "model")) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
