"""Every setting of a training run, declared once.

``python -m ffcv_r50.config`` prints them as the table in ``docs/settings.md``. How they are read, and how
strictly, is :mod:`ffcv_r50.config.reader`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PrivateAttr

from ffcv_r50.config import command_line, declaration, kinds, reader, reference
from ffcv_r50.config.declaration import Given
from ffcv_r50.errors import InvalidSetting, UserError, nearest
from ffcv_r50.keyframes import Keyframes, Varying, parse_number
from ffcv_r50.logs.sinks import SINKS, SinkOptions
from ffcv_r50.optim import OPTIMIZERS, SGD, Optimizer
from ffcv_r50.optim.clipping import CLIPPINGS, ClippingOptions
from ffcv_r50.optim.clipping.none import Unclipped
from ffcv_r50.registry import Options, Range, check_ordered
from ffcv_r50.training.averages import AVERAGES, NETWORK, AverageOptions
from ffcv_r50.training.losses import LOSSES, LossOptions
from ffcv_r50.training.losses.cross_entropy import CrossEntropy
from ffcv_r50.training.sam import Sam
from ffcv_r50.training.transforms import TRANSFORMS, BatchOptions, TransformOptions
from ffcv_r50.training.transforms.normalize import IMAGENET, Statistics

Count = Annotated[int, Range(at_least=1, at_most=1_000_000)]
Workers = Annotated[int, Range(at_least=0, at_most=1024)]
LARGEST_SIDE = 4096
"""Of an image that a network is given, in pixels."""
LONGEST_PROFILE = 100
"""Steps: all that a profile holds is in memory until it is written."""
Amount = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(above=0, at_most=1)]
Probability = Annotated[float, Range(at_least=0, below=1)]
Brightness = Annotated[float, Range(at_least=0, at_most=1)]
Deviation = Annotated[float, Range(above=0, at_most=1)]
Ratio = Annotated[float, Range(above=0)]


def _without_spaces(names: str) -> str:
    """Names separated by commas alone."""
    return ",".join(filter(None, (name.strip() for name in names.split(","))))


class Model(Options):
    """The network."""

    arch: str = "resnet50"
    """Any torchvision classification model, by its name there, or `timm/NAME` for timm's (install
    `ffcv_r50[timm]`). The number of classes comes from the dataset."""
    blurpool: bool = False
    """Blur before each strided convolution of 16 channels or more (anti-aliasing; Zhang 2019, as in
    ffcv-imagenet)."""
    zero_init_residual: bool = False
    """Start the last batch-norm of each residual block at zero (Goyal et al. 2017). ResNets only;
    timm's do so in any case."""
    prior_head_bias: bool = False
    """Start the last layer's bias at -log(classes), as Mosaic does for `loss.name: bce`, whose loss
    would begin with each class as likely as not."""
    stochastic_depth: Probability | None = None
    """Probability that the last residual branch is left out for an image, the first ones less; null
    is the architecture's own: none in ResNets."""
    dropout: Probability | None = None
    """Probability of the network's dropout (timm's: of that before the last layer); null is the
    architecture's own."""
    weights: str = ""
    """Weights to start from: a file of this toolkit, torchvision or timm, or a name of torchvision's,
    such as `ResNet50_Weights.IMAGENET1K_V2`, whose file is in its cache. The last layer is new where
    the classes are others."""

    @property
    def network(self) -> dict[str, Any]:
        """What says which network it is, for :func:`ffcv_r50.models.build`."""
        return {name: value for name, value in self if name != "weights"}


class Data(Options):
    """Where images come from and how they are cropped."""

    train_dataset: str = ""
    """The `.beton` file to train on. Needed unless `training.eval_only`."""
    val_dataset: str = ""
    """The `.beton` file to evaluate on."""
    num_workers: Workers = 0
    """Decoding threads of each process; 0 takes the cores it may use, shared with the other
    processes of the machine. Has no effect on results."""
    stage_dir: str = ""
    """A folder on each node's own disk that the two files are copied to before training, once per
    node; a copy that is still whole is used again. Empty reads them where they are."""
    order: Literal["random", "quasi_random"] = "random"
    """`random` shuffles all samples each epoch; `quasi_random` shuffles so that each page of the
    file is read about once, for datasets larger than memory."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """Share of the image's area that a training crop covers, lowest and highest."""
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Width / height of a training crop, lowest and highest."""
    flip: Annotated[float, Range(at_least=0, at_most=1)] = 0.5
    """Probability that a training image is mirrored left to right."""
    repeats: Annotated[int, Range(at_least=1, at_most=64)] = 1
    """Repeated augmentation: so many views of each image in a step, of so many times fewer images
    an epoch."""
    scaled_decode: bool = True
    """Decode JPEGs at 1/2, 1/4 or 1/8 where the crop is much larger than needed: faster, with
    slightly different pixels. Training only."""
    mean: tuple[Brightness, Brightness, Brightness] | None = None
    """Of red, green and blue over the training images, in units of 0 to 1: what becomes zero; null is
    ImageNet's `[0.485, 0.456, 0.406]`. `python -m writers.inspect FILE --stats` computes both."""
    std: tuple[Deviation, Deviation, Deviation] | None = None
    """Their standard deviation, which becomes one; null is ImageNet's `[0.229, 0.224, 0.225]`."""
    bad_images: Literal["error", "gray"] = "error"
    """A JPEG that cannot be decoded ends the run (`error`), or is replaced by a gray image, counted
    and logged (`gray`)."""

    @property
    def statistics(self) -> Statistics:
        """Of the training images: :attr:`mean` and :attr:`std`, or ImageNet's."""
        return Statistics(self.mean or IMAGENET.mean, self.std or IMAGENET.std)


class Training(Options):
    """The optimisation."""

    epochs: Annotated[int, Range(at_least=1, at_most=10_000)]
    """Passes over the training set."""
    batch_size: Count
    """Images per optimizer step over all processes. Overridden on the command line, it scales the
    recipe's learning rate linearly."""
    norm_batch_size: Count | None = None
    """Images whose statistics batch-norm computes together, whatever the number of processes;
    divides `batch_size`, and null stands for all of it. It is also what a process holds in memory
    at a time."""
    label_smoothing: Annotated[float, Range(at_least=0, below=1)] = 0.0
    """Share of the target spread evenly over the classes."""
    weight_decay: Amount = 1e-4
    """The L2 penalty of SGD, LARS and Adam, or the decoupled weight decay of AdamW and LAMB, and of
    SGD where `optimizer.decoupled` asks for it."""
    momentum: Annotated[float, Range(at_least=0, below=1)] = 0.9
    """Momentum of SGD and LARS, or the first beta of Adam, AdamW and LAMB."""
    decay_norm_and_bias: bool = False
    """Apply weight decay to the parameters of normalisation layers and to biases, too."""
    lr_multipliers: dict[str, Annotated[Varying, Range(at_least=0)]] = Field(default_factory=dict)
    """What the learning rate is multiplied by in parts of the network, such as
    `{fc: 10, layer1: {0: 0, 2: 0, 4: 1}}`; of parts inside of each other the inner one's holds. 0
    freezes: weights and batch-norm statistics stand still. Evaluated for each optimizer step."""
    layer_decay: Annotated[Varying, Range(above=0, at_most=1)] = Varying(1)
    """Each layer's learning rate is this times that of the layer above it (timm's `--layer-decay`): of
    a ResNet's classifier, residual blocks and stem; of other networks' outermost modules."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """`fp16` goes with a gradient scaler; `auto` is bf16 on GPUs that have it, else fp16, and fp32
    on the CPU."""
    reduce_precision: Literal["fp32", "bf16"] = "fp32"
    """What processes send each other their gradients in. `bf16` halves the traffic; sums are fp32, and
    each number is rounded twice, whatever the number of processes. A single one sends nothing."""
    channels_last: bool = True
    """Keep images as NHWC in memory: faster convolutions on GPUs with tensor cores."""
    compile: bool = False
    """Run the network through torch.compile, in training and evaluation: faster steps, after a start
    that is slow once for each resolution. What torch cannot compile runs as written, and a line says so."""
    cuda_graphs: bool = False
    """Record forward and backward passes as a CUDA graph for each resolution: faster where passes are
    small, about 64 images, and Python cannot start kernels as fast as they end. It keeps the memory of
    training during evaluation too. Needs a GPU; has not run on one yet."""
    seed: Annotated[int, Range(at_least=0, below=2**32)] = 0
    """Fixes the initial weights, the order of samples, their crops and flips."""
    deterministic: bool = False
    """The same bits from the same seed on the same hardware, at the price of slower GPU kernels.
    On CPUs it changes nothing."""
    rollbacks: Annotated[int, Range(at_least=0)] = 0
    """How often a run whose loss is not finite may go back to its newest checkpoint and skip the
    steps from there to the bad one."""
    eval_only: bool = False
    """Evaluate `checkpoint` on `data.val_dataset` and `validation.sets`, and stop; the results, and what
    it made of each image of `data.val_dataset`, are written to `logging.folder`, where one is given."""


class Schedule(Options):
    """What changes during training: keyframes over epochs.

    A row that may be null takes the place of the setting of the same name in `training`, has its
    range, and is evaluated for each optimizer step. Another such row is one more field here.
    """

    lr: Keyframes
    """Learning rate, evaluated for each optimizer step. `{0: 0, 2: 1.7, 88: 0}` goes in straight
    lines from 0 to 1.7 at the start of epoch 2 and to 0 at the end of epoch 87 (epochs count from
    0). A keyframe may say how its value is reached: `{0: 0.005, 5: 0.5, 600: cosine 0}`, with
    `linear`, `cosine`, `step` (stays until this keyframe), `exponential` or `power N` (polynomial
    decay); `interpolation: cosine` in the row does so for all that say nothing."""
    resolution: Keyframes
    """Side of the training images in pixels, evaluated at the start of each epoch: a keyframe's own,
    a multiple of 8, and between keyframes the nearest multiple of 32. Interpolated as `schedule.lr`
    is."""
    momentum: Keyframes | None = None
    """Takes the place of `training.momentum`, for each optimizer step; interpolated as
    `schedule.lr`."""
    weight_decay: Keyframes | None = None
    """Takes the place of `training.weight_decay`, for each optimizer step."""
    label_smoothing: Keyframes | None = None
    """Takes the place of `training.label_smoothing`, for each optimizer step."""

    @property
    def rows(self) -> dict[str, Keyframes]:
        """The rows that are there, by name."""
        return {name: row for name, row in self if row is not None}


class Validation(Options):
    """The evaluation after each epoch."""

    resolution: Annotated[int, Range(at_least=1, at_most=LARGEST_SIDE)] = 256
    """Side of the evaluated images in pixels."""
    crop_ratio: Annotated[float, Range(above=0, at_most=1)] = 0.875
    """Side of the central square that is evaluated, as a share of the image's shorter side."""
    tta: Literal["none", "flip"] = "none"
    """`flip` averages the predictions for each image and its mirror image."""
    batch_size: Count = 256
    """Images per process at a time. Has no effect on the result."""
    averages_every: Annotated[int, Range(at_least=1)] = 1
    """Epochs from one evaluation of the `averages` to the next. After the last epoch they are
    evaluated in any case. Has no effect on their weights."""
    sets: dict[str, str] = Field(default_factory=dict)
    """With `training.eval_only`: further files to evaluate on, under names for the table, such as
    `{v2: v2.beton, a: imagenet_a.beton, real: real.json}`. Classes are matched by their names; of a file
    with some of the network's classes, the network chooses among those. A `.json` file has several
    right labels for each image of `data.val_dataset` (ReaL)."""


class Checkpoint(Options):
    """Saving the state of the run."""

    every: str = "10 minutes"
    """Save within an epoch after so much, `500 steps` or `10 minutes`; the end of an epoch is
    always saved. What a machine that vanishes takes with it is at most this."""
    keep_every: Annotated[int, Range(at_least=0)] = 0
    """Keep the state after every so many epochs for good, as `checkpoints/epoch_10.pt`; 0 keeps
    only the last two and the best."""
    give_up_minutes: Amount = 60.0
    """Where no checkpoint can be written (disk full, folder gone), train on with a warning for this
    long, then stop with an error."""
    weights: str = NETWORK
    """What the finished run writes as `weights.pt`: the `network`, or one of its `averages` by name.
    The others lie beside it, as `weights_NAME.pt`."""
    file: str | None = None
    """The weights or checkpoint that `training.eval_only` evaluates, or the folder of a finished run;
    `--checkpoint=FILE` is short for it."""

    @property
    def interval(self) -> tuple[float, str]:
        """The number and the unit (steps or minutes) of :attr:`every`.

        Raises:
            ValueError: it has another form.
        """
        text, unit = self.every.split()
        number = parse_number(text)
        if unit not in ("steps", "minutes") or number <= 0:
            raise ValueError(self.every)
        return number, unit


class Resume(Options):
    """Continuing."""

    source: str = "auto"
    """`auto` continues from the newest state in `logging.folder`; `none` starts anew, putting an
    earlier state aside; a path starts a folder that is still empty from that checkpoint.
    `--resume=...` is short for it."""
    allow: Annotated[str, AfterValidator(_without_spaces)] = ""
    """Settings that may differ from the saved ones, separated by commas:
    `training.epochs,schedule.lr`. The new ones hold from the resumed step on. `data.train_dataset`
    and `data.val_dataset` permit other images; the same ones under another path need nothing."""


class Logging(Options):
    """Where a run writes."""

    folder: str = ""
    """The folder of the run: resolved settings, log, checkpoints. The same command with the same
    folder continues the run."""
    every: Count = 50
    """Steps between two of which loss, gradient norm and speed are logged. What tells two runs apart
    (fingerprint of the data, learning rate) is logged of each step."""
    samples: bool = False
    """Keep of each training image in each epoch its loss and whether it was right: `ledger/` in the
    folder, three bytes an image."""
    profile: str = ""
    """Steps to profile on rank 0, `20-30` or `20`: what the host and the device did when, as
    `trace.json.gz` in the folder, for Perfetto. Steps are numbered as in `steps.jsonl`."""
    sinks: tuple[Annotated[SinkOptions, SINKS], ...] = ()
    """Where numbers go besides the console and the logs in the folder, such as `[{tensorboard: {}}]`."""

    @property
    def profiled(self) -> range:
        """The steps that :attr:`profile` names.

        Raises:
            ValueError: it has another form, or names too many.
        """
        if not self.profile:
            return range(0)
        first, dash, last = self.profile.partition("-")
        steps = range(int(first), int(last if dash else first) + 1)
        if not 0 < len(steps) <= LONGEST_PROFILE:
            raise ValueError(self.profile)
        return steps


class Dist(Options):
    """Several processes."""

    timeout_seconds: Count = 600
    """A process that waits longer than this for another ends the run."""


FFCV_IMAGENET_NAMES = {
    "lr.lr": "write the learning rate as keyframes: schedule.lr: {0: 0, 2: 1.7, 16: 0}",
    "lr.lr_peak_epoch": "the peak is a keyframe: schedule.lr: {0: 0, 2: 1.7, 16: 0}",
    "lr.lr_schedule_type": "cyclic is schedule.lr: {0: 0, 2: 1.7, 16: 0}, step is "
    "{0: 0.1, 30: 0.01, interpolation: step}",
    "lr.step_ratio": "write schedule.lr: {0: 0.1, 30: 0.01, interpolation: step}",
    "lr.step_length": "write schedule.lr: {0: 0.1, 30: 0.01, interpolation: step}",
    "resolution.min_res": "write schedule.resolution: {0: 160, 11: 160, 13: 192}",
    "resolution.max_res": "write schedule.resolution: {0: 160, 11: 160, 13: 192}",
    "resolution.start_ramp": "write schedule.resolution: {0: 160, 11: 160, 13: 192}",
    "resolution.end_ramp": "write schedule.resolution: {0: 160, 11: 160, 13: 192}",
    "validation.lr_tta": "write validation.tta: flip",
    "training.blurpool": "write model.blurpool: true",
    "training.use_blurpool": "write model.blurpool: true",
    "training.bn_wd": "write training.decay_norm_and_bias",
    "training.optimizer": "write optimizer: {name: sgd}",
    "training.distributed": "start with torchrun to train on several GPUs",
    "dist.world_size": "the number of processes comes from torchrun or SLURM",
    "dist.address": "the address comes from torchrun or SLURM",
    "dist.port": "the port comes from torchrun or SLURM",
    "data.in_memory": "files are mapped into memory; data.order: quasi_random is for datasets "
    "larger than memory",
    "data.gpu": "the GPUs come from torchrun or CUDA_VISIBLE_DEVICES",
    "model.pretrained": "name weights to evaluate with checkpoint",
    "logging.log_level": "the log is always whole",
    "config_file": "write --config FILE",
}
"""Names in ffcv-imagenet's files and commands that mean something else here, or nothing."""


MOVED = {"training.nesterov": "optimizer.nesterov"}
"""Keys of before, in files and on command lines -> what they are read as."""


class Config(Options):
    """All settings of a run.

    Raises:
        InvalidSetting: settings that do not fit together, when built.
    """

    model: Model = Model()
    data: Data = Data()
    training: Training
    optimizer: Annotated[Optimizer, OPTIMIZERS] = SGD()
    """Which optimizer, by its name here; each has options of its own."""
    clipping: Annotated[ClippingOptions, CLIPPINGS] = Unclipped()
    """What keeps gradients small, by its name here. It is applied once a step, to the gradient over
    the whole batch."""
    sam: Sam = Sam()
    loss: Annotated[LossOptions, LOSSES] = CrossEntropy()
    """What is minimised, by its name here. Evaluation reports the plain cross-entropy."""
    augment: tuple[Annotated[TransformOptions, TRANSFORMS], ...] = ()
    """What is done to the training images, in this order: first what changes single images, as they
    are decoded, then what changes batches, on the device."""
    averages: tuple[Annotated[AverageOptions, AVERAGES], ...] = ()
    """Averages of the weights that are evaluated and logged beside the network, such as
    `[{ema: {half_life: 2}}]`."""
    schedule: Schedule
    validation: Validation = Validation()
    logging: Logging = Logging()
    dist: Dist = Dist()
    checkpoint: Checkpoint = Checkpoint()
    resume: Resume = Resume()

    MOVED: ClassVar = MOVED
    FOREIGN: ClassVar = FFCV_IMAGENET_NAMES
    _notices: tuple[str, ...] = PrivateAttr(default=())

    def model_post_init(self, _context: Any) -> None:
        """Refuse settings that do not fit together."""
        _check(self)

    def __eq__(self, other: object) -> bool:
        """Whether all settings are equal, whatever was said on the way to them."""
        return isinstance(other, Config) and dict(self) == dict(other)

    @property
    def notices(self) -> tuple[str, ...]:
        """How the command line changed the recipe, for the user to read; not a setting."""
        return self._notices

    def to_yaml(self) -> str:
        """Every setting with its value; loaded alone, it gives an equal Config."""
        return declaration.to_yaml(self)

    @property
    def varying(self) -> dict[tuple[str, str], Varying]:
        """What changes during training outside of the schedule, by setting and the name in it:
        ``("augment", "mix.cutmix")``, ``("training.lr_multipliers", "layer1")``, ...
        """
        found = {
            ("augment", f"{TRANSFORMS.name_of(options)}.{name}"): value
            for options in self.augment
            for name, value in options
            if isinstance(value, Varying)
        }
        multipliers = self.training.lr_multipliers.items()
        found |= {("training.lr_multipliers", part): value for part, value in multipliers}
        found["training.layer_decay", ""] = self.training.layer_decay
        found["sam.rho", ""] = self.sam.rho
        return {place: value for place, value in found.items() if not value.constant}

    @property
    def rows(self) -> dict[str, Keyframes | Varying]:
        """All that changes during training, by name: ``lr``, ``mix.cutmix``, ``lr_multipliers.fc``, ..."""
        found: dict[str, Keyframes | Varying] = {**self.schedule.rows}
        for (setting, name), row in self.varying.items():
            section = "" if setting == "augment" else setting.removeprefix("training.")
            found[f"{section}.{name}".strip(".")] = row
        return found

    @property
    def recomputed_images(self) -> dict[str, int]:
        """Over how many images each average's batch-norm statistics are recomputed; 0 for none."""
        return {AVERAGES.name_of(options): options.recomputed_over for options in self.averages}

    @property
    def largest_label_smoothing(self) -> float:
        """Of all steps."""
        row = self.schedule.label_smoothing
        return max(row.values) if row else self.training.label_smoothing

    @property
    def norm_batch_size(self) -> int:
        """Images whose statistics batch-norm computes together."""
        return self.training.norm_batch_size or self.training.batch_size


SHORT = {"checkpoint": "checkpoint.file", "resume": "resume.source"}
"""Sections that stand for one of their settings on the command line."""


class _Recipe(Options):
    """What says which recipe."""

    config: str | None = None
    """The file."""


def load(argv: Sequence[str], *, needs_data: bool = True) -> Config:
    """The configuration of ``--config FILE --section.key=value ...``.

    ``--help`` prints every setting and exits with 0.

    Args:
        argv: the words after the program's name.
        needs_data: whether datasets and a run folder must be named (not so for printing a recipe).

    Raises:
        UserError: any fault in the file or on the command line, in one line.
    """
    words = command_line.split(argv)
    if "help" in words:
        usage = "usage: train_imagenet.py --config FILE [--section.key=value ...]"
        reference.print_page(reference.help_text(Config, usage))
        raise SystemExit(0)
    return resolve(words, needs_data=needs_data)


def resolve(words: Mapping[str, Sequence[str]], *, needs_data: bool = True) -> Config:
    """:func:`load` for a command line that :func:`command_line.split` took apart."""
    overrides: dict[str, list[str]] = {}
    for key, texts in words.items():
        overrides.setdefault(SHORT.get(key, key), []).extend(texts)
    path = command_line.take(_Recipe, overrides).config
    recipe = {} if path is None else reader.from_file(Config, path)
    arguments = reader.from_arguments(Config, overrides, recipe)
    given = declaration.merge(Config, recipe, arguments)
    notices = _adapt_to_batch_size(recipe, arguments, given)
    hint = "" if path else "name a recipe: --config rcp/rn50_16ep.yaml"
    config = declaration.build(Config, given, hint)
    if needs_data:
        check_data(config)
    config._notices = notices
    return config


def _adapt_to_batch_size(
    recipe: Mapping[str, Given], arguments: Mapping[str, Given], given: dict[str, Given]
) -> tuple[str, ...]:
    """Scale the learning rate in ``given`` for another batch size; say how the recipe changes."""
    batch_key, norm_key = "training.batch_size", "training.norm_batch_size"
    if batch_key not in recipe or not (batch_key in arguments or norm_key in arguments):
        return ()
    notices = []
    old, new = recipe[batch_key].value, given[batch_key].value
    if old != new and "schedule.lr" in recipe and "schedule.lr" not in arguments:
        lr = recipe["schedule.lr"]
        scaled = lr.value.scaled(new / old)
        given["schedule.lr"] = lr._replace(value=scaled)
        notices.append(
            f"{batch_key} {old} -> {new}: learning rate scaled by {new / old:.6g} "
            f"(peak {max(lr.value.values):.6g} -> {max(scaled.values):.6g})"
        )
    old, new = (
        (source[norm_key].value if norm_key in source else None) or source[batch_key].value
        for source in (recipe, given)
    )
    if old != new:
        notices.append(
            f"{norm_key} {old} -> {new}: batch-norm sees other batches than in the recipe; "
            "this run departs from it"
        )
    return tuple(notices)


def _check(config: Config) -> None:
    _check_batches(config)
    _check_rows(config)
    _check_lr(config)
    config.loss.check(config.largest_label_smoothing, None)
    _check_resolution(config)
    _check_saving(config)
    # Here: torchvision takes seconds, and the errors above should not.
    from ffcv_r50 import models
    from ffcv_r50.models import cached_weights

    models.check_arch(config.model.arch)
    cached_weights.check_name(config.model.weights)


def _check_batches(config: Config) -> None:
    training, schedule = config.training, config.schedule
    check_ordered(config.data, "crop_scale", "crop_ratio", section="data.")
    if getattr(config.optimizer, "nesterov", False):
        row = schedule.momentum
        if not (min(row.values) if row else training.momentum):
            where = "schedule" if row else "training"
            raise InvalidSetting("optimizer.nesterov", f"needs {where}.momentum above 0")
    if config.data.repeats > training.batch_size:
        raise InvalidSetting(
            "data.repeats",
            f"{config.data.repeats} views of an image are more than the batch "
            f"(training.batch_size is {training.batch_size})",
        )
    if training.batch_size % config.norm_batch_size:
        batch, norm = training.batch_size, config.norm_batch_size
        fitting = max(n for n in range(1, min(norm, batch) + 1) if batch % n == 0)
        other = f" or a multiple of {norm} as training.batch_size" if batch > norm else ""
        raise InvalidSetting(
            "training.norm_batch_size",
            f"{norm} does not divide training.batch_size {batch}; "
            f"pass --training.norm_batch_size={fitting}{other}",
        )
    row = schedule.label_smoothing
    if training.cuda_graphs and row and len(set(row.values)) > 1:
        raise InvalidSetting(
            "training.cuda_graphs",
            "would keep the label smoothing of one step for all; remove schedule.label_smoothing or "
            "pass --training.cuda_graphs=0",
        )
    _check_augment(config)
    names = [AVERAGES.name_of(average) for average in config.averages]
    for name in names:
        if names.count(name) > 1:
            raise InvalidSetting(
                "averages", f"{name} is there twice, and logs could not tell which"
            )
    if config.checkpoint.weights not in [NETWORK, *names]:
        raise InvalidSetting(
            "checkpoint.weights",
            f"expected {' or '.join([NETWORK, *names])}, got '{config.checkpoint.weights}'; list "
            "an average under averages",
        )
    for name, average in zip(names, config.averages, strict=True):
        if average.begins > training.epochs:
            raise InvalidSetting(
                "averages",
                f"{name} has nothing before epoch {average.begins:g}, after the end of the run "
                f"(training.epochs is {training.epochs})",
            )


def _check_augment(config: Config) -> None:
    batches = [isinstance(options, BatchOptions) for options in config.augment]
    if batches != sorted(batches):
        names = [TRANSFORMS.name_of(options) for options in config.augment]
        late = names[batches.index(True) + batches[batches.index(True) :].index(False)]
        raise InvalidSetting(
            "augment",
            f"{late} changes single images as they are decoded, {names[batches.index(True)]} whole "
            f"batches later; list {late} first",
        )


def _check_rows(config: Config) -> None:
    training, schedule = config.training, config.schedule
    constants = declaration.declared(type(training))
    places = [(f"schedule.{name}", "", row) for name, row in schedule.rows.items()]
    places += [(key, name, row) for (key, name), row in config.varying.items()]
    for key, name, row in places:
        last = row.points[-1].epoch
        if last > training.epochs:
            raise InvalidSetting(
                key,
                f"{f'{name} has' if name else 'has'} a keyframe at epoch {last:g}, after the end of "
                f"the run (training.epochs is {training.epochs})",
            )
    for name, row in schedule.rows.items():
        for value in row.values if name in constants else ():
            try:
                kinds.check(value, constants[name].kind)
            except ValueError as error:
                raise InvalidSetting(f"schedule.{name}", str(error)) from error


def _check_lr(config: Config) -> None:
    lr, epochs = config.schedule.lr, config.training.epochs
    end, value, _ = lr.points[-1]
    if value == 0 and 0 < end < epochs:
        raise InvalidSetting(
            "schedule.lr",
            f"is 0 from epoch {end:g} to the end of the run (training.epochs is {epochs})",
        )
    if not any(lr.values):
        raise InvalidSetting("schedule.lr", "is 0 throughout; nothing would be trained")
    if low := [value for value in lr.values if value < 0]:
        raise InvalidSetting("schedule.lr", f"expected rates of at least 0, got {low[0]:g}")


def _check_resolution(config: Config) -> None:
    resolution = config.schedule.resolution
    for side in resolution.values:
        if not 32 <= side <= LARGEST_SIDE or side % 8:
            raise InvalidSetting(
                "schedule.resolution",
                f"expected multiples of 8 from 32 to {LARGEST_SIDE}, got {side:.15g}",
            )
    trained = dict.fromkeys(
        resolution_at(resolution, epoch) for epoch in range(config.training.epochs)
    )
    for side in resolution.values:
        if side not in trained:
            sides = ", ".join(map(str, trained))
            raise InvalidSetting(
                "schedule.resolution",
                f"the ramp never reaches {side:g}: the epochs train at {sides}; move the keyframe "
                "to an earlier epoch or remove it",
            )


def _check_saving(config: Config) -> None:
    sinks = [SINKS.name_of(options) for options in config.logging.sinks]
    for name in sinks:
        if sinks.count(name) > 1:
            raise InvalidSetting("logging.sinks", f"{name} is there twice")
    if config.checkpoint.file and not config.training.eval_only:
        raise InvalidSetting(
            "checkpoint.file",
            "is for --training.eval_only=1; a run continues from its logging.folder by itself",
        )
    if config.validation.sets and not config.training.eval_only:
        raise InvalidSetting(
            "validation.sets",
            "is for --training.eval_only=1, which evaluates the --checkpoint of a finished run",
        )
    if "val" in config.validation.sets:
        raise InvalidSetting(
            "validation.sets", "val is what the table calls data.val_dataset; choose another name"
        )
    try:
        _ = config.logging.profiled
    except ValueError:
        raise InvalidSetting(
            "logging.profile",
            f"expected steps such as '20-30', at most {LONGEST_PROFILE}, got '{config.logging.profile}'",
        ) from None
    try:
        _ = config.checkpoint.interval
    except ValueError:
        raise InvalidSetting(
            "checkpoint.every",
            f"expected '500 steps' or '10 minutes', got '{config.checkpoint.every}'",
        ) from None
    known = declaration.keys(Config)
    for key in filter(None, config.resume.allow.split(",")):
        if key not in known:
            near = nearest(key, known)
            raise InvalidSetting(
                "resume.allow",
                f"{key} is not a setting" + (f"; did you mean {near}?" if near else ""),
            )


def resolution_at(keyframes: Keyframes, epoch: int) -> int:
    """The side in pixels of an epoch.

    Between keyframes it is the nearest multiple of 32, of two as near the one that is an even
    multiple, as ffcv-imagenet's ``np.round`` decides.
    """
    side = keyframes.at(epoch)
    return int(side) if side in keyframes.values else round(side / 32) * 32


def check_data(config: Config) -> None:
    """See that what a run reads and writes is named.

    Raises:
        UserError: something is not.
    """
    evaluates = config.training.eval_only
    needed = {
        "data.train_dataset": not evaluates and not config.data.train_dataset,
        "data.val_dataset": not config.data.val_dataset,
        "logging.folder": not evaluates and not config.logging.folder,
        "checkpoint": evaluates and not config.checkpoint.file,
    }
    if missing := [key for key, lacks in needed.items() if lacks]:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {verb} missing; pass --{missing[0]}=PATH")
