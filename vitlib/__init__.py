"""Small vision transformers on class-imbalanced CIFAR-10: model, losses, data and training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitlib.models import create_model

__version__ = "0.1.0"
__all__ = ["__version__", "create_model"]


def __getattr__(name: str) -> object:
    """Load ``create_model`` on first use, so that ``vitlib --help`` does not wait for torch."""
    if name == "create_model":
        from vitlib.models import create_model

        return create_model
    raise AttributeError(f"module 'vitlib' has no attribute {name!r}")
