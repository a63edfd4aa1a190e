"""Nothing in a step or an evaluation waits for the device, and a step's collectives are counted.

The device here is ``meta``: whatever is not on the host is nothing but a shape, so reading it raises.
What would copy to a GPU and wait for that is seen by two modes that watch every call of torch.
"""

import contextlib
import datetime
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import StochasticDepth

from ffcv_r50 import distributed, models, optim
from ffcv_r50.data.loader import Batch as Loaded
from ffcv_r50.keyframes import Varying
from ffcv_r50.models.blurpool import blur_strided_convolutions
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.optim import SGD, AdamW, Lamb, Lars, Optimizer
from ffcv_r50.optim.clipping import ClippingOptions
from ffcv_r50.optim.clipping.agc import AdaptiveClipping
from ffcv_r50.optim.clipping.global_norm import ClipNorm
from ffcv_r50.optim.clipping.none import Unclipped
from ffcv_r50.optim.clipping.value import ClipValue
from ffcv_r50.training import evaluation
from ffcv_r50.training.averages import AverageOptions
from ffcv_r50.training.averages.ema import Ema
from ffcv_r50.training.averages.precise_bn import PreciseBatchNorm
from ffcv_r50.training.averages.swa import Swa
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.losses import LossOptions
from ffcv_r50.training.losses.bce import BinaryCrossEntropy
from ffcv_r50.training.losses.cross_entropy import CrossEntropy
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.predictions import Predictions
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.sam import PLAIN, Sam
from ffcv_r50.training.step import TrainStep
from ffcv_r50.training.transforms import BatchOptions
from ffcv_r50.training.transforms.colout import ColOut
from ffcv_r50.training.transforms.erasing import Erasing
from ffcv_r50.training.transforms.mix import Mix
from ffcv_r50.training.transforms.normalize import Normalize

CPU, DEVICE = torch.device("cpu"), torch.device("meta")
CLASSES, SIZE, PARTS = 5, 6, 2
VALUES = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "label_smoothing": 0.1}


class Waited(AssertionError):
    """Python would wait for a GPU here."""


READS = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, torch.nonzero}
READS |= {Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, torch.masked_select}


class Calls(TorchFunctionMode):
    """Reading what is on the device, and writing Python's numbers to it."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        on_device = any(isinstance(arg, Tensor) and arg.device == DEVICE for arg in args[:1])
        if func in READS and on_device:
            raise Waited(f"{func} reads the device")
        if func is Tensor.__setitem__ and on_device and not isinstance(args[2], Tensor):
            raise Waited(f"assigns {args[2]} to a part of a tensor on the device")
        result = func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and result.device == DEVICE:
            raise Waited(f"{func.__name__} copies {args[-1]} to the device")
        return result


class Operations(TorchDispatchMode):
    """Copies between host and device, and sizes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[int] = []
        """Numbers in each all-reduce."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device for tensor in tensors}
        if DEVICE in devices and torch.Tag.data_dependent_output in func.tags:
            raise Waited(f"{func} reads the device")
        if DEVICE in devices and torch.Tag.dynamic_output_shape in func.tags:
            raise Waited(f"{func}: a size that depends on values")
        if name in ("index", "index_put", "index_put_") and args[0].device == DEVICE:
            indices = [index for index in args[1] if index is not None]
            if any(index.device != DEVICE or index.dtype == torch.bool for index in indices):
                raise Waited(f"{func}: indices from the host, or as many as a mask has")
        if name == "allreduce_":
            self.collectives.append(sum(tensor.numel() for tensor in args[0]))
        if name == "_to_copy":
            devices.add(torch.device(kwargs.get("device") or args[0].device))
        if name in ("copy_", "_to_copy") and len(devices) > 1:
            to_device = name == "_to_copy" or args[0].device == DEVICE
            to_device = to_device and kwargs.get("device") != CPU
            if not (to_device and (kwargs.get("non_blocking") or args[2:3] == (True,))):
                raise Waited(f"{func}: a copy that is waited for")
        return func(*args, **kwargs)


@contextlib.contextmanager
def watched() -> Iterator[Operations]:
    """Raises :class:`Waited` where Python would wait for a GPU."""
    with Operations() as operations, Calls():
        yield operations


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "if": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mask assigned": lambda x: x.__setitem__(x > 0, x.sum()),
    "number assigned": lambda x: x.__setitem__(0, 1.0),
    "list": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "indices": lambda x: x[torch.arange(2)],
    "copy": lambda x: torch.ones(3).to(x.device),
    "copy into": lambda x: x.copy_(torch.ones(4)),
    "repeats": lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device=x.device)),
}


@pytest.mark.parametrize("kind", WAITS)
def test_each_kind_of_wait_is_seen(kind: str) -> None:
    x = torch.zeros(4, device=DEVICE)
    with watched(), pytest.raises(Waited):
        WAITS[kind](x)


def test_what_does_not_wait_is_allowed() -> None:
    x = torch.zeros(4, device=DEVICE)
    with watched():
        x[0] = x.sum()
        x += 3
        x.mul_(torch.tensor(2.0))  # a number of the host's goes into the kernel's arguments
        x.fill_(1.0)
        x.copy_(torch.ones(4), non_blocking=True)
        torch.arange(4, device=DEVICE)


# ------------------------------------------------------------------------------ steps as people run them


def network() -> nn.Module:
    with torch.device(DEVICE):
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 8, 3, stride=2, padding=1),
            StochasticDepth(0.2, "row"),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(8 * 256, CLASSES),
        )
    assert blur_strided_convolutions(net) == 1
    return net.to(memory_format=torch.channels_last)


def batches() -> Iterator[Batch]:
    for part in itertools.cycle(range(PARTS)):
        images = torch.empty(SIZE, 32, 32, 3, dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2)
        integers = torch.empty(SIZE, dtype=torch.int64, device=DEVICE)
        yield Batch(images, integers, integers, range(part * SIZE, (part + 1) * SIZE))


def train_step(
    *,
    optimizer: Optimizer | None = None,
    transforms: tuple[BatchOptions, ...] = (),
    averages: tuple[AverageOptions, ...] = (),
    clipping: ClippingOptions | None = None,
    loss: LossOptions | None = None,
    sam: Sam = PLAIN,
    each: bool = False,
    frozen: bool = False,
    overlapped: bool = False,
) -> TrainStep:
    net = network()
    parts = optim.Parts(net, {"0": Varying(0.0)} if frozen else None, epochs=1)
    groups = optim.parameter_groups(net, False, parts=parts)
    chosen = [options.build(CLASSES, i << 16) for i, options in enumerate(transforms, 64)]
    return TrainStep(
        net,
        (optimizer or SGD()).build(groups, momentum=0.9),
        transforms=[Normalize(DEVICE), *chosen] if chosen else [],
        loss=(loss or CrossEntropy()).build(CLASSES),
        averages={str(options): options.build(network(), 2) for options in averages},
        precision=Precision("fp32", DEVICE),
        draws=draw_by_position(net, 1, DEVICE),
        forward=Forward(DEVICE),
        micro_batches=PARTS,
        ranks=1,
        outcomes=Outcomes(SIZE * PARTS, DEVICE, each=each),
        clipping=(clipping or Unclipped()).build(net, models.classifier(net)),
        sam=sam,
        parts=parts,
        overlapped=overlapped,
    )


RUNS: dict[str, dict[str, Any]] = {
    "ffcv-imagenet": {},
    "each image noted": {"each": True},
    "torchvision V2": {
        "transforms": (Erasing(), Mix(mixup=Varying(0.2), cutmix=Varying(1.0))),
        "averages": (Ema(half_life=2),),
    },
    "mixed before": {"transforms": (Mix(mixup=Varying(0.2)), Erasing(), ColOut(rows=0, columns=0))},
    "timm A1": {
        "optimizer": Lamb(),
        "loss": BinaryCrossEntropy(target_threshold=0.2),
        "transforms": (Mix(mixup=Varying(0.2), cutmix=Varying(1.0)),),
    },
    "LARS": {"optimizer": Lars()},
    "Mosaic": {
        "optimizer": SGD(decoupled=True),
        "sam": Sam(rho=Varying(0.05)),
        "averages": (Swa(start=0, period=0.5), PreciseBatchNorm()),
    },
    "AdamW, clipped": {"optimizer": AdamW(), "clipping": ClipNorm(at=1.0)},
    "values clipped": {"clipping": ClipValue(at=0.1)},
    "units clipped": {"clipping": AdaptiveClipping()},
    "a part frozen": {"frozen": True},
    "several nodes": {"overlapped": True},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_step_does_not_wait(kind: str) -> None:
    step, loaded = train_step(**RUNS[kind]), batches()
    with watched():
        for number in range(2):
            values = step(loaded, Step(1, number, (number + 1) / 2, VALUES), stop=number == 1)
    assert values.device == DEVICE


@pytest.mark.parametrize(
    ("optimizer", "waits"),
    # Whether a step overflowed is read by torch's scaler where the optimizer cannot take it from the
    # device itself, as torch's fused ones do.
    [(SGD(), False), (AdamW(), False), (Lars(), True), (Lamb(), True), (SGD(decoupled=True), True)],
    ids=str,
)
def test_which_optimizers_wait_in_fp16(
    optimizer: Optimizer, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = train_step(optimizer=optimizer)
    step.scaler = torch.amp.GradScaler("meta")
    if isinstance(
        step.optimizer, (torch.optim.SGD, torch.optim.AdamW)
    ):  # fused, which meta has not
        step.optimizer._step_supports_amp_scaling = True
        monkeypatch.setattr(step.optimizer, "step", lambda **_: None)
    with watched(), pytest.raises(Waited, match="item") if waits else contextlib.nullcontext():
        for number in range(2):
            step(batches(), Step(1, number, 0.0, VALUES))


def test_an_evaluation_waits_at_its_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = Predictions(2 * SIZE, DEVICE)
    labels = torch.empty(SIZE, dtype=torch.int64, device=DEVICE)
    images = torch.empty(SIZE, 32, 32, 3, dtype=torch.uint8, device=DEVICE)
    summed: list[Tensor] = []
    monkeypatch.setattr(distributed, "all_reduce_sum", summed.append)

    def shard() -> Iterator[Loaded]:
        with watched():  # from the first batch to after the last
            for _ in range(2):
                yield Loaded(images, labels, labels)

    with pytest.raises(NotImplementedError, match="no data"):
        evaluation.evaluate(
            network(),
            shard(),
            num_samples=2 * SIZE,
            device=DEVICE,
            precision=Precision("fp32", DEVICE),
            tta="flip",
            predictions=predictions,
        )
    assert len(summed) == 1, "it came to the sums over all ranks"


# ------------------------------------------------------------------------------------- collectives


@pytest.mark.parametrize(("overlapped", "buckets"), [(False, 1), (True, 3)])
def test_how_many_collectives_a_step_has(tmp_path: Path, overlapped: bool, buckets: int) -> None:
    """Gradients, loss, votes and statistics go in one, or where overlapped in a fixed number, here of three
    parameters with a bucket each; what is noted of the images beside them.
    """
    init = f"file://{tmp_path}/rendezvous"
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=init, rank=0, world_size=1, timeout=timeout)
    try:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))
        images = torch.zeros(SIZE, 3, 8, 8, dtype=torch.uint8)
        net(images.float())
        step = TrainStep(
            net,
            SGD().build(optim.parameter_groups(net, False), momentum=0.9),
            transforms=[],
            loss=CrossEntropy().build(CLASSES),
            averages={},
            precision=Precision("fp32", CPU),
            draws=draw_by_position(net, 1, CPU),
            forward=Forward(CPU),
            micro_batches=PARTS,
            ranks=1,
            outcomes=Outcomes(SIZE * PARTS, CPU, each=True),
            overlapped=overlapped,
        )
        labels = torch.zeros(SIZE, dtype=torch.int64)
        loaded = itertools.cycle(
            Batch(images, labels, labels, range(part * SIZE, (part + 1) * SIZE))
            for part in range(PARTS)
        )
        step(loaded, Step(1, 0, 0.0, VALUES))
        with Operations() as operations:
            step(loaded, Step(1, 1, 0.0, VALUES))
    finally:
        dist.destroy_process_group()
    gradients = sum(parameter.numel() for parameter in net.parameters())
    *summed, noted = operations.collectives
    assert len(summed) == buckets
    assert sum(summed) >= gradients + 2 + 2 * 4, "gradients, loss, votes, means and variances"
    assert noted == 3 + 2 * SIZE * PARTS
