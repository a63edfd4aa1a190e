"""The number format that the network computes in."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ffcv_r50.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Precision:
    """What ``training.precision`` means on a device.

    Args:
        asked: fp32, fp16, bf16, or ``auto``: bf16 on a GPU that computes in it, fp16 on an older one,
            fp32 on a CPU.
        device: of the network.

    Raises:
        UserError: the device cannot train in it.
    """

    def __init__(self, asked: str, device: torch.device) -> None:
        self.name = _choose(asked, device)
        self._device_type = device.type

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the network computes."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self._device_type, dtype=DTYPES[self.name])

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16's gradients from underflowing; does nothing in the other formats."""
        return torch.amp.GradScaler(self._device_type, enabled=self.name == "fp16")


def _choose(asked: str, device: torch.device) -> str:
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if asked == "auto":
            return "bf16" if native else "fp16"
        if asked == "bf16" and not native:
            raise UserError("training.precision=bf16: this GPU has no bf16; use fp16 or auto")
    if device.type == "cpu":
        if asked == "auto":
            return "fp32"
        if asked == "fp16":
            raise UserError("training.precision=fp16: needs a GPU; use bf16, fp32 or auto")
    return asked
