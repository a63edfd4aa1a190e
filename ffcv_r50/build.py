"""What a configuration asks for, made: datasets, loaders, network, step, storage, logs."""

import copy
import ctypes
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from ffcv_r50 import distributed, models, optim, recipe
from ffcv_r50.config.settings import Config
from ffcv_r50.data import transfer
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import Batch as Loaded
from ffcv_r50.data.loader import Epoch, EvalLoader, TrainLoader
from ffcv_r50.data.philox import transform_stream
from ffcv_r50.errors import UserError
from ffcv_r50.logs.console import Console
from ffcv_r50.logs.run_logs import FolderLogs, Logs
from ffcv_r50.logs.sinks import SINKS
from ffcv_r50.models import cached_weights, pretrained, sizes
from ffcv_r50.models.batchnorm import share_statistics
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.optim import Parts, layers
from ffcv_r50.recipe import Plan
from ffcv_r50.run import checkpoint, staging
from ffcv_r50.run.storage import FolderStorage, Storage
from ffcv_r50.training import graphs
from ffcv_r50.training.averages import AVERAGES
from ffcv_r50.training.forward import CompiledForward, Forward
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Transform
from ffcv_r50.training.step import TrainStep
from ffcv_r50.training.trace import Trace
from ffcv_r50.training.transforms import BatchOptions, ImageOptions
from ffcv_r50.training.transforms.normalize import Normalize

COMPILED_PIECES = 8
"""Of a compiled network on several nodes: more of them fuse less, fewer give gradients later."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

# ------------------------------------------------------------------------------------------- data


def datasets(config: Config, world: distributed.World, *files: str) -> list[Beton]:
    """Open ``.beton`` files, from copies on the node's own disk where ``data.stage_dir`` wants them.

    All ranks must call it.

    Raises:
        UserError: a file cannot be read, or is another one on another node; the same on every rank.
    """
    if config.data.stage_dir:
        files = tuple(staging.stage(files, config.data.stage_dir, copies=world.local_rank == 0))
    with distributed.errors_on_all_ranks():
        opened = [Beton(file) for file in files]
    same_on_all_nodes(opened, world)
    return opened


def same_on_all_nodes(files: list[Beton], world: distributed.World) -> None:
    """See that a path means one dataset everywhere: the copy on a node's own disk may be an old one.

    All ranks must call it.

    Raises:
        UserError: a node has another dataset; the same on every rank.
    """
    mine = [file.identity for file in files] if world.local_rank == 0 else None
    main = distributed.broadcast_object(mine if world.is_main else None)
    with distributed.errors_on_all_ranks():
        for file, here, there in zip(files, mine or main, main, strict=True):
            if here != there:
                raise UserError(
                    f"{file.path}: is another dataset on {socket.gethostname()} than on rank 0's node "
                    f"({there.difference(here)}); copy it again"
                )


def check_classes(config: Config, train_set: Beton, val_set: Beton) -> None:
    """See that both files have the same classes, and that the loss can be computed for so many.

    Raises:
        UserError: they do not.
    """
    known = train_set.sidecar and val_set.sidecar
    if known and train_set.sidecar.classes != val_set.sidecar.classes:  # type: ignore[union-attr]
        raise UserError(
            f"{val_set.path}: its classes are not those of {train_set.path}; write both from folders "
            "with the same class names"
        )
    if val_set.num_classes > train_set.num_classes:
        raise UserError(
            f"{val_set.path}: has {val_set.num_classes} classes, {train_set.path} has "
            f"{train_set.num_classes}; give files of one dataset"
        )
    config.loss.check(config.largest_label_smoothing, train_set.num_classes)


def train_loader(
    config: Config, train_set: Beton, plan: Plan, world: distributed.World
) -> TrainLoader:
    """This rank's part of the training batches, as ``config.data`` wants them.

    Raises:
        UserError: the batch is larger than the dataset, or libjpeg-turbo is missing.
    """
    return TrainLoader(
        train_set,
        seed=config.training.seed,
        batch_size=config.training.batch_size,
        micro_batch_size=plan.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        num_workers=config.data.num_workers or world.cores,
        crop_scale=config.data.crop_scale,
        crop_ratio=config.data.crop_ratio,
        flip=config.data.flip,
        transforms=[
            options.build(config.data.statistics)
            for options in config.augment
            if isinstance(options, ImageOptions)
        ],
        repeats=config.data.repeats,
        order=config.data.order,
        scaled_decode=config.data.scaled_decode,
        bad_images=config.data.bad_images,
        pin_memory=world.device.type == "cuda",
    )


def val_loader(config: Config, val_set: Beton, world: distributed.World) -> EvalLoader:
    """This rank's share of the validation set, as ``config.validation`` wants it."""
    return EvalLoader(
        val_set,
        batch_size=config.validation.batch_size,
        resolution=config.validation.resolution,
        crop_ratio=config.validation.crop_ratio,
        rank=world.rank,
        world_size=world.size,
        num_workers=config.data.num_workers or world.cores,
        bad_images=config.data.bad_images,
        pin_memory=world.device.type == "cuda",
    )


def train_batches(
    batches: Iterable[Loaded], plan: Plan, world: distributed.World
) -> Iterator[Batch]:
    """What the step is given: batches on the device that know their place in the global batch.

    Args:
        batches: of a :func:`train_loader`, from the start of a step on. Each rank has a run of
            equally many micro-batches of a global batch.
    """
    size = plan.micro_batch_size
    first = world.rank * plan.micro_batches * size
    for number, batch in enumerate(transfer.to_device(batches, world.device)):
        start = first + number % plan.micro_batches * size
        yield Batch(*batch, range(start, start + size))


def warn_of_gray_images(batches: Epoch, config: Config, console: Console) -> None:
    """Say how many images on all ranks were unreadable and replaced; every rank must call it."""
    if config.data.bad_images == "gray":
        count = torch.tensor([float(batches.bad_images)])
        distributed.all_reduce_sum(count)
        if count.item():
            console.warn(f"{count.item():.0f} unreadable images were replaced by gray ones")


# ------------------------------------------------------------------------------------------ network


def check_sizes(config: Config, num_classes: int) -> None:
    """See that the network takes the images of every epoch, before the first one is trained.

    Raises:
        UserError: it does not, or there is no such network.
    """
    asked = {"num_classes": num_classes, **config.model.network}
    for seen in recipe.seen_sizes(config).values():
        sizes.check(**asked, batch_size=config.norm_batch_size, resolution=seen, training=True)
    sizes.check(**asked, batch_size=1, resolution=config.validation.resolution, training=False)


def set_up_torch(config: Config, device: torch.device) -> None:
    """The process-wide settings of torch that the configuration asks for.

    Raises:
        UserError: the device has not what it asks for.
    """
    if config.training.cuda_graphs and not config.training.eval_only:
        graphs.check(device)
    if config.training.deterministic:
        # cuBLAS reads it when it makes its first handle.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Nothing here reads memory that it did not write; filling it would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not config.training.deterministic
        torch.set_float32_matmul_precision("high")
    elif device.type == "cpu":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have the next step use the memory that the last one freed.

    glibc gives large blocks, and the end of its heap, back to the kernel, which clears every page of
    them before a step gets it again. Other C libraries have no such settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def network(config: Config, num_classes: int, device: torch.device) -> nn.Module:
    """The network with its initial weights, on the device.

    Raises:
        UserError: the architecture is not available.
    """
    torch.manual_seed(config.training.seed)
    built = models.build(num_classes=num_classes, **config.model.network).to(device)
    if config.training.channels_last:
        built.to(memory_format=torch.channels_last)
    return built


def start_from_weights(config: Config, network: nn.Module, console: Console) -> None:
    """Give a network that is not trained yet the weights that ``model.weights`` names; all ranks.

    Raises:
        UserError: they cannot be read, or are those of another network.
    """
    if config.model.weights:
        with distributed.errors_on_all_ranks():
            where = f"model.weights={config.model.weights}"
            weights = checkpoint.load_weights(cached_weights.file_of(config.model.weights), where)
            taken = pretrained.start_from(network, weights, where)
            console.say(f"starts from {config.model.weights}: {taken}")
        # Machines may have other files under the same path.
        distributed.broadcast_tensors(network.state_dict().values())


def batch_transforms(config: Config, num_classes: int, device: torch.device) -> list[Transform]:
    """What happens to a batch on the device before the network sees it.

    Without any, bytes go to the forward pass, which normalises them and may be compiled.
    """
    chosen = [
        options.build(num_classes, transform_stream(row))
        for row, options in enumerate(config.augment)
        if isinstance(options, BatchOptions)
    ]
    return [Normalize(device, config.data.statistics), *chosen] if chosen else []


def lr_parts(config: Config, network: nn.Module) -> Parts:
    """The parts of the network that have learning rates of their own.

    Raises:
        InvalidSetting: it has no such part, or all of it is frozen at some time.
    """
    training = config.training
    depths = layers.depths(network)
    return Parts(network, training.lr_multipliers, training.layer_decay, depths, training.epochs)


def forward(config: Config, world: distributed.World) -> Forward:
    """What runs the network, compiled where the configuration asks for it."""
    if config.training.compile:
        pieces = COMPILED_PIECES if world.several_nodes else 1
        say = Console(world.is_main).say
        statistics = config.data.statistics
        return CompiledForward(world.device, say, statistics=statistics, pieces=pieces)
    return Forward(world.device, config.data.statistics)


def cuda_graphs(config: Config, plan: Plan, world: distributed.World) -> graphs.Graphs | None:
    """What records forward and backward passes, where the configuration asks for it."""
    if not config.training.cuda_graphs:
        return None
    say = Console(world.is_main).say
    if plan.group_size > 1:
        say(
            f"training.cuda_graphs: {plan.group_size} processes share each batch-norm's statistics, and "
            "sums between processes are not recorded; forward and backward passes run without"
        )
        return None
    return graphs.Graphs(graphs.CudaCapture(world.device), say)


def train_step(
    config: Config,
    network: nn.Module,
    precision: Precision,
    plan: Plan,
    num_classes: int,
    steps_per_epoch: int,
    world: distributed.World,
) -> TrainStep:
    """What trains ``network``. All ranks must call it, outside of what could fail on one alone.

    Args:
        config: the settings.
        network: with its initial weights, on the device.
        precision: to compute in.
        plan: of a step, for this number of processes.
        num_classes: of the dataset.
        steps_per_epoch: optimizer steps in each epoch.
        world: this process among its peers.

    Raises:
        UserError: the network cannot be trained in the same way at any world size.
    """
    # The same seed gives the same weights, but not to the bit on processors of another kind.
    distributed.broadcast_tensors(network.state_dict().values())
    averages = {
        AVERAGES.name_of(options): options.build(copy.deepcopy(network), steps_per_epoch)
        for options in config.averages
    }
    network = share_statistics(network, plan.group_size)
    training = config.training
    peak_lr = max(config.schedule.lr.values)
    parts = lr_parts(config, network)
    groups = optim.parameter_groups(network, training.decay_norm_and_bias, peak_lr, parts)
    return TrainStep(
        network,
        config.optimizer.build(groups, momentum=recipe.values(config, 0.0)["momentum"]),
        transforms=batch_transforms(config, num_classes, world.device),
        loss=config.loss.build(num_classes),
        averages=averages,
        precision=precision,
        draws=draw_by_position(network, training.seed, world.device),
        forward=forward(config, world),
        micro_batches=plan.micro_batches,
        ranks=world.size,
        outcomes=Outcomes(training.batch_size, world.device, each=config.logging.samples),
        clipping=config.clipping.build(network, models.classifier(network)),
        sam=config.sam,
        parts=parts,
        overlapped=world.several_nodes,
        reduce_bf16=training.reduce_precision == "bf16",
        graphs=cuda_graphs(config, plan, world),
    )


# ------------------------------------------------------------------------------------ what is kept


def trace(config: Config, steps: int, world: distributed.World, console: Console) -> Trace:
    """The profile of some steps, which rank 0 takes.

    Args:
        config: the settings.
        steps: of an epoch.
        world: this process among its peers.
        console: is told where it is.

    Raises:
        UserError: the run has no such steps.
    """
    profiled, whole = config.logging.profiled, steps * config.training.epochs
    if profiled and profiled[-1] >= whole:
        raise UserError(
            f"logging.profile={config.logging.profile}: the run's steps are 0 to {whole - 1}"
        )
    profiled = profiled if world.is_main else range(0)
    return Trace(profiled, Path(config.logging.folder), console.say)


def storage(
    config: Config, train_set: Beton, val_set: Beton, world: distributed.World, console: Console
) -> Storage:
    """What this rank keeps of the run: rank 0 all of it, in the folder; the others nothing.

    Raises:
        UserError: the folder cannot be made or written, or a live run holds it.
    """
    if not world.is_main:
        return Storage()
    return FolderStorage(config, train_set, val_set, console.say, console.warn)


def check_sinks(config: Config) -> None:
    """See that the sinks can work here.

    Raises:
        UserError: one cannot: its package is not installed.
    """
    for options in config.logging.sinks:
        options.check()


def logs(config: Config, storage: Storage, console: Console) -> Logs:
    """Where this rank's numbers go: nowhere, but from rank 0."""
    if not isinstance(storage, FolderStorage):
        return Logs()
    chosen = {
        SINKS.name_of(options): options.build(storage.path) for options in config.logging.sinks
    }
    return FolderLogs(storage.path, chosen, console.warn)
