"""The network and what changes it: one optimizer step at a time."""

import hashlib
import inspect
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ffcv_r50 import distributed, models, optim
from ffcv_r50.config.settings import Config
from ffcv_r50.data import transfer
from ffcv_r50.errors import RunFault, UserError
from ffcv_r50.models.batchnorm import RunningStatistics, share_statistics

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


def _be_deterministic() -> None:
    """The same bits from the same input on the same hardware, from here on in this process."""
    # cuBLAS reads it when it makes its first handle.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it did not write; filling it would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class Learner:
    """The network, its optimizer, and one step of training over the global batch.

    Args:
        config: its sections ``model`` and ``training``.
        num_classes: size of the last layer.
        micro_batches: parts of a step on this process, see :func:`ffcv_r50.recipe.plan`.
        world: this process among its peers.
        group_size: neighbouring processes that normalise together, see the plan too.

    Raises:
        UserError: the architecture or the precision is not to be had.
    """

    def __init__(
        self,
        config: Config,
        num_classes: int,
        micro_batches: int,
        world: distributed.World,
        group_size: int = 1,
    ) -> None:
        training = config.training
        self.micro_batches = micro_batches
        self.precision = choose_precision(training.precision, world.device)
        self.label_smoothing = training.label_smoothing
        self.seed = training.seed
        self._world = world

        torch.manual_seed(training.seed)
        if training.deterministic:
            _be_deterministic()
        if world.device.type == "cuda":
            torch.backends.cudnn.benchmark = not training.deterministic
            torch.set_float32_matmul_precision("high")
        self.network = models.build(
            config.model.arch,
            num_classes,
            blurpool=config.model.blurpool,
            zero_init_residual=config.model.zero_init_residual,
        ).to(world.device)
        if training.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.network = share_statistics(self.network, group_size)
        self.statistics = RunningStatistics(self.network)
        groups = optim.parameter_groups(self.network, training.decay_norm_and_bias)
        self.optimizer = config.optimizer.build(groups, momentum=training.momentum)
        self._constants = {
            "momentum": training.momentum,
            "weight_decay": training.weight_decay,
        }
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
        # One all-reduce a step carries everything besides the gradients: the loss, the wishes to
        # stop, and the statistics of batch-norm.
        self._sums = torch.zeros(2 + self.statistics.size, device=world.device)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the network computes in the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._world.device.type, dtype=DTYPES[self.precision])

    def step(
        self, parts: Iterator[tuple[Tensor, Tensor]], lr: float, number: int, stop: bool = False
    ) -> Tensor:
        """One optimizer step over the next ``micro_batches`` parts of every process.

        What networks draw at random (dropout) follows from the seed, the number of the step and
        the part, so it depends neither on the number of processes nor on resuming, and a
        checkpoint needs no generator's state.

        Args:
            parts: images uint8 [n, 3, height, width] and labels int64 [n], on the device.
            lr: learning rate of this step.
            number: of the step, counted from the run's start.
            stop: whether this process wishes to stop.

        Returns:
            float32 [3] on the device, the same on every rank: the mean loss over the global batch,
            the number of processes that wish to stop, and the norm of the gradient. Where that
            norm is not finite, an fp16 step was skipped and any other spoilt the network.
        """
        self.network.train()
        optim.set_hyperparameters(self.optimizer, lr=lr, **self._constants)
        self.statistics.begin()
        sums = self._sums.zero_()
        sums[1] = float(stop) * self.micro_batches
        for part in range(self.micro_batches):
            images, labels = next(parts)
            torch.manual_seed(self._seed(number, self._world.rank * self.micro_batches + part))
            with self._gradients_meet(last=part == self.micro_batches - 1):
                with self.autocast():
                    logits = self._forward(transfer.normalize(images))
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
                self.scaler.scale(loss / self.micro_batches).backward()
            sums[0] += loss.detach()
            self.statistics.add_to(sums[2:])
        distributed.all_reduce_sum(sums)
        votes = sums[1] / self.micro_batches
        sums /= self.micro_batches * self._world.size
        self.statistics.advance(sums[2:], self.micro_batches)
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return torch.stack([sums[0], votes, norm])

    def _seed(self, number: int, part: int) -> int:
        """A 64-bit seed from the run's seed, a step and a part of its global batch."""
        words = b"".join(n.to_bytes(8, "little") for n in (self.seed, number, part))
        return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")

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
        optim.load_state(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


class NotFinite(RunFault):
    """A loss or gradient became infinite or not a number.

    Args:
        step: counted from the run's start.
        what: the quantity and its value.
    """

    everywhere = True

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"{what} in step {step}; the last checkpoint is from before it. Lower the learning "
            "rate, train in bf16 or fp32 (training.precision), or let the run go back and skip "
            "such steps (training.rollbacks)"
        )
        self.step = step


class Monitor:
    """Reads what each step returned one step late, so that the device never waits for Python.

    Args:
        device: where the values are.
        skips_overflows: fp16, where a gradient that overflows only skips a step.
    """

    def __init__(self, device: torch.device, skips_overflows: bool = False) -> None:
        cuda = device.type == "cuda"
        self._host = [torch.empty(3, pin_memory=cuda) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)] if cuda else None
        self._pending: int | None = None
        self._skips_overflows = skips_overflows
        self.loss_sum = 0.0
        self.latest = float("nan")
        """The newest loss that has been read."""
        self.overflows = 0
        self.stop = False
        """Whether some process wished to stop: becomes true at the same step on all of them."""
        self.fault: NotFinite | None = None
        """What was not finite among the values read, if anything."""
        self._heard = False

    def push(self, step: int, values: Tensor) -> None:
        """Take what :meth:`Learner.step` returned for ``step``; :meth:`check` the values before.

        Raises:
            NotFinite: the values before are not.
        """
        self._host[step % 2].copy_(values, non_blocking=True)
        if self._copied:
            self._copied[step % 2].record()
        self.check()
        self._pending = step

    def check(self) -> None:
        """Read, and act on what was read; every rank must do this at the same steps.

        Raises:
            NotFinite: the values are not.
        """
        self.read()
        self.stop = self._heard
        if self.fault is not None:
            raise self.fault

    def read(self) -> None:
        """Read the newest values, if they have not been; a rank may do this by itself."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        if self._copied:
            self._copied[step % 2].synchronize()
        loss, votes, norm = self._host[step % 2].tolist()
        self.latest = loss
        self._heard = self._heard or votes > 0
        if not math.isfinite(loss):
            self.fault = NotFinite(step, f"the loss is {loss}")
            return
        self.loss_sum += loss
        if not math.isfinite(norm):
            if self._skips_overflows:
                self.overflows += 1
            else:
                self.fault = NotFinite(step, f"the gradient's norm is {norm}")
