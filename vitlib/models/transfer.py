"""Handing trained weights to another model."""

from collections.abc import Mapping

from torch import Tensor, nn


def take_over(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Start ``model`` from another model's ``state``: from its encoder, or (``all``) from the whole of it.

    Raises UserError when the encoder does not fit, RuntimeError (torch's) when the whole does not.
    """
    if what == "encoder":
        model.load_encoder(state)  # type: ignore[operator]
    else:
        model.load_state_dict(state)
