"""What a model costs: parameters and floating-point operations."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """``params``: all parameters; ``flops``: operations of one image's forward pass, 2 x multiply-adds."""

    params: int
    flops: int


def count(model: nn.Module, image_size: int = 32, in_channels: int = 3) -> Cost:
    """Count parameters, and the FLOPs of one image's forward pass in evaluation mode.

    ``torch.utils.flop_counter`` counts matrix products and convolutions, both products of the
    attention included, at two operations per multiply-add; papers that print multiply-adds as
    "FLOPs" show half of it. Norms, activations, softmax and pooling are not counted.
    Nothing is computed: weights and image are stood in for by shapes on torch's meta device.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    image = torch.empty(1, in_channels, image_size, image_size, device="meta")
    training = model.training
    model.eval()
    try:
        flops = _flops(lambda: functional_call(model, shapes, (image,)))
    finally:
        model.train(training)
    return Cost(sum(parameter.numel() for parameter in model.parameters()), flops)


def count_on(model: nn.Module, images: torch.Tensor) -> float:
    """Return the mean FLOPs of the images, float (B, C, S, S), one by one: where the work depends on the image."""
    return sum(_flops(functools.partial(model, image)) for image in images.split(1)) / len(images)


def _flops(run: Callable[[], object]) -> int:
    # the plain kernel, because the counter does not know every fused one
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
