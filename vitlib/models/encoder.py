"""What every model here can do with its encoder: name its parameters, and take one over from pre-training."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from ..errors import UserError


class EncoderModel(nn.Module):
    """A model made of an encoder (patch embedding, blocks) and task layers, which pre-training has not."""

    task_layers: ClassVar[tuple[str, ...]] = ("head", "importance", "distill_head", "decoder", "projector", "teacher")
    added_layers: ClassVar[tuple[str, ...]] = ()  # what a variant adds to the model it starts from

    def _in_encoder(self, name: str) -> bool:
        return name.split(".")[0] not in self.task_layers

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's parameters, so that an optimiser can give them a rate of their own."""
        return [parameter for name, parameter in self.named_parameters() if self._in_encoder(name)]

    def load_encoder(self, state: Mapping[str, Tensor]) -> None:
        """Copy the encoder, BatchNorm's statistics included, from another model's ``state_dict()``.

        The task layers keep their values; those in ``state`` are ignored. Of a student and its teacher, the moving
        average of it, the teacher's is taken (Caron et al. 2021, arXiv:2104.14294, section 3.1).

        Raises:
            UserError: an entry of the encoder is missing, unknown or of another shape; nothing is copied.
        """
        own = {name: tensor for name, tensor in self.state_dict().items() if self._in_encoder(name)}
        moving = {name.removeprefix("teacher."): it for name, it in state.items() if name.startswith("teacher.")}
        given = {name: tensor for name, tensor in (moving or state).items() if self._in_encoder(name)}
        for name in sorted(own.keys() | given.keys()):
            if name not in own or name not in given or own[name].shape != given[name].shape:
                raise UserError(
                    f"预训练编码器的参数 {name} 与模型不符（缺失、多余或形状不同）："
                    "请用同样的 patch_size、d_model、num_layers 等参数重新预训练。"
                )
        self.load_state_dict(given, strict=False)
