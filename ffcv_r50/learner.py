"""The network and what changes it: one optimizer step at a time."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ffcv_r50 import distributed, models, optim
from ffcv_r50.config import Config
from ffcv_r50.data import device as device_data
from ffcv_r50.errors import RunFault, UserError
from ffcv_r50.models.batchnorm import RunningStatistics

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# torch 2.15 renamed the argument and warns about its old name.
BROADCAST_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def choose_precision(asked: str, device: torch.device) -> str:
    """What ``training.precision`` means on this device.

    ``auto`` is bf16 on a GPU that computes in it, fp16 on an older one, fp32 on a CPU.

    Raises:
        UserError: the device cannot train in it.
    """
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


class Learner:
    """The network, its optimizer, and one step of training over the global batch.

    Args:
        config: its sections ``model`` and ``training``.
        num_classes: size of the last layer.
        micro_batches: parts of a step on this process, see :func:`ffcv_r50.recipe.plan`.
        world: this process among its peers.

    Raises:
        UserError: the architecture or the precision is not to be had.
    """

    def __init__(
        self, config: Config, num_classes: int, micro_batches: int, world: distributed.World
    ) -> None:
        training = config.training
        self.micro_batches = micro_batches
        self.precision = choose_precision(training.precision, world.device)
        self.label_smoothing = training.label_smoothing
        self._world = world

        torch.manual_seed(training.seed)
        if world.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        self.network = models.build(
            config.model.arch,
            num_classes,
            blurpool=config.model.blurpool,
            zero_init_residual=config.model.zero_init_residual,
        ).to(world.device)
        if training.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.statistics = RunningStatistics(self.network)
        self.optimizer = optim.sgd(
            self.network,
            momentum=training.momentum,
            nesterov=training.nesterov,
            weight_decay=training.weight_decay,
            decay_norm_and_bias=training.decay_norm_and_bias,
        )
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.precision == "fp16")

        # Evaluation and checkpoints use self.network itself, free of both wrappers' names.
        self._forward: Any = torch.compile(self.network) if training.compile else self.network
        if world.size > 1:
            # Buffers need no broadcast: batch-norm's are the same everywhere after each step.
            self._forward = DistributedDataParallel(
                self._forward,
                gradient_as_bucket_view=True,
                **{BROADCAST_BUFFERS: False},  # type: ignore[arg-type]
            )
        # One all-reduce a step carries everything besides the gradients: the loss and the
        # statistics of batch-norm.
        self._sums = torch.zeros(1 + self.statistics.size, device=world.device)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the network computes in the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._world.device.type, dtype=DTYPES[self.precision])

    def step(self, parts: Iterator[tuple[Tensor, Tensor]], lr: float) -> Tensor:
        """One optimizer step over the next ``micro_batches`` parts of every process.

        Args:
            parts: images uint8 [n, 3, height, width] and labels int64 [n], on the device.
            lr: learning rate of this step.

        Returns:
            The mean loss over the global batch, a scalar on the device, the same on every rank.
        """
        self.network.train()
        optim.set_learning_rate(self.optimizer, lr)
        self.statistics.begin()
        sums = self._sums.zero_()
        for part in range(self.micro_batches):
            images, labels = next(parts)
            with self._gradients_meet(last=part == self.micro_batches - 1):
                with self.autocast():
                    logits = self._forward(device_data.normalize(images))
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
                self.scaler.scale(loss / self.micro_batches).backward()
            sums[0] += loss.detach()
            self.statistics.add_to(sums[1:])
        distributed.all_reduce_sum(sums)
        sums /= self.micro_batches * self._world.size
        self.statistics.advance(sums[1:], self.micro_batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return sums[0].clone()

    def _gradients_meet(self, last: bool) -> AbstractContextManager[object]:
        """Processes average their gradients in the last backward pass of a step only."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """Everything here that the next step depends on."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


class LossMonitor:
    """Reads each step's loss one step late, so that the device never waits for Python.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._host = [torch.empty((), pin_memory=cuda) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)] if cuda else None
        self._pending: int | None = None
        self._sum = 0.0
        self._count = 0
        self.latest = float("nan")
        """The newest loss that has been read."""

    def push(self, step: int, loss: Tensor) -> None:
        """Take the loss of ``step`` (counted from the run's start); read the one before.

        Raises:
            RunFault: the one before is not finite; names its step.
        """
        self._host[step % 2].copy_(loss, non_blocking=True)
        if self._copied:
            self._copied[step % 2].record()
        self._read()
        self._pending = step

    def mean(self) -> float:
        """The mean of all losses since the last call.

        Raises:
            RunFault: the newest is not finite.
        """
        self._read()
        mean = self._sum / self._count
        self._sum, self._count = 0.0, 0
        return mean

    def _read(self) -> None:
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        if self._copied:
            self._copied[step % 2].synchronize()
        self.latest = self._host[step % 2].item()
        if not abs(self.latest) < float("inf"):
            raise RunFault(
                f"the loss of step {step} is {self.latest}; the last checkpoint is from before it. "
                "Lower the learning rate, or use training.precision=bf16 or fp32"
            )
        self._sum += self.latest
        self._count += 1
