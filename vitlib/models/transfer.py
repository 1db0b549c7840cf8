"""Handing trained weights to another model, also to a smaller one: structured pruning.

Letters in shapes: D width, h heads, d width of a head, H hidden width of a feed-forward network.
"""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from .vit import Block


def take_over(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Start ``model`` from another model's ``state``: from its encoder, or (``all``) from the whole of it.

    With ``all``, a model of fewer heads (of the same width) or hidden channels gets the most important ones,
    see :func:`cut`; layers that the model adds (``added_layers``) keep their fresh values.

    Raises UserError when the encoder does not fit, RuntimeError (torch's) when the whole does not.
    """
    if what == "encoder":
        model.load_encoder(state)  # type: ignore[operator]
        return
    added = getattr(model, "added_layers", ())
    fresh = {name: tensor for name, tensor in model.state_dict().items() if name.split(".")[0] in added}
    model.load_state_dict(fresh | cut(state, model))


def cut(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return ``state`` with the heads and hidden channels that ``model`` has room for, block by block.

    The importance of a head or channel is the sum of squares of all weights and biases that go with it: the
    group norm of Fang et al. 2023 (arXiv:2301.12900), without data. Li et al. 2017 (arXiv:1608.08710) add absolute
    values, of one filter alone.
    What stays keeps its order, so that equal sizes give the very state.
    """
    out = dict(state)
    for i, block in enumerate(getattr(model, "blocks", ())):
        if not isinstance(block, Block) or f"blocks.{i}.ffn.fc1.weight" not in state:
            continue  # what is missing, load_state_dict tells
        fc1, fc2 = f"blocks.{i}.ffn.fc1", f"blocks.{i}.ffn.fc2"
        norms = channel_norms(state, i)
        if block.ffn.fc1.out_features < len(norms):
            keep = _largest(norms, block.ffn.fc1.out_features)
            out |= {f"{fc1}.{kind}": state[f"{fc1}.{kind}"][keep] for kind in ("weight", "bias")}
            out[f"{fc2}.weight"] = state[f"{fc2}.weight"][:, keep]
        heads = block.attention.num_heads
        width = block.attention.proj.in_features // heads
        norms = head_norms(state, i, width)
        if heads < len(norms):
            qkv, proj = f"blocks.{i}.attention.qkv", f"blocks.{i}.attention.proj"
            keep = _largest(norms, heads)
            for kind in ("weight", "bias"):
                split = rearrange(state[f"{qkv}.{kind}"], "(three h d) ... -> three h d ...", three=3, d=width)
                out[f"{qkv}.{kind}"] = rearrange(split[:, keep], "three h d ... -> (three h d) ...")
            split = rearrange(state[f"{proj}.weight"], "D (h d) -> D h d", d=width)
            out[f"{proj}.weight"] = rearrange(split[:, keep], "D h d -> D (h d)")
    return out


def channel_norms(state: Mapping[str, Tensor], block: int) -> Tensor:
    """Return the importance (H,) of the hidden channels of a block's feed-forward network."""
    weight, bias, back = (state[f"blocks.{block}.ffn.{name}"] for name in ("fc1.weight", "fc1.bias", "fc2.weight"))
    return weight.square().sum(dim=1) + bias.square() + back.square().sum(dim=0)


def head_norms(state: Mapping[str, Tensor], block: int, width: int) -> Tensor:
    """Return the importance (h,) of a block's heads of this width, their queries, keys and values together."""
    weight, bias, back = (
        state[f"blocks.{block}.attention.{name}"] for name in ("qkv.weight", "qkv.bias", "proj.weight")
    )
    rows = rearrange(weight.square().sum(dim=1) + bias.square(), "(three h d) -> h (three d)", three=3, d=width)
    return rows.sum(dim=1) + rearrange(back.square().sum(dim=0), "(h d) -> h d", d=width).sum(dim=1)


def _largest(norms: Tensor, count: int) -> Tensor:
    return torch.sort(norms.topk(count).indices).values
