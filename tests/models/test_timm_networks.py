"""timm's networks: what they compute is timm's, what cannot be promised is refused."""

import copy
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torchvision.ops import StochasticDepth

from ffcv_r50 import models, optim
from ffcv_r50.config.settings import Model
from ffcv_r50.errors import FINISHED, UserError
from ffcv_r50.models import batchnorm, sizes
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.models.pretrained import start_from
from ffcv_r50.optim import layers
from ffcv_r50.tools import flops
from tests import ranks
from tests.conftest import Dataset

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["resnet18d", "regnetx_002"])
def test_weights_and_logits_are_timms(name: str) -> None:
    torch.manual_seed(3)
    ours = models.build(f"timm/{name}", 7)
    torch.manual_seed(3)
    theirs = timm.create_model(name, num_classes=7)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), theirs.train(mode)(x))
    assert models.classifier(ours).out_features == 7


def test_resnets_start_as_told() -> None:
    """timm's at zero whatever the setting says: it says so."""
    for zero in (False, True):
        network = models.build("timm/resnet18", 5, zero_init_residual=zero)
        assert not network.get_parameter("layer1.0.bn2.weight").any()
    with pytest.raises(UserError, match=r"zero_init_residual: timm/mobilenetv3_small_050 has no"):
        models.build("timm/mobilenetv3_small_050", 5, zero_init_residual=True)


def test_the_prior_is_in_the_bias_of_timms_head() -> None:
    network = models.build("timm/mobilenetv3_small_050", 20, prior_head_bias=True)
    bias = network.get_parameter("classifier.bias")
    torch.testing.assert_close(bias.sigmoid() * 21, torch.ones(20))


# ----------------------------------------------------------------------------- drawn by position


def no_coupling(network: nn.Module) -> nn.Module:
    """Without batch statistics, so that images can be compared one by one."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18d", {"stochastic_depth": 0.5, "dropout": 0.4}),  # F.dropout
        ("convnext_atto", {"stochastic_depth": 0.3, "dropout": 0.4}),  # a module
    ],
)
def test_each_image_loses_the_same_alone_as_in_a_batch(
    name: str, options: dict[str, float]
) -> None:
    torch.manual_seed(0)
    network: Any = models.build(f"timm/{name}", 5, **options).double()  # type: ignore[arg-type]
    for parameter in network.parameters():  # zeroed branches would hide that they are left out
        nn.init.normal_(parameter, std=0.05)
    draws = draw_by_position(network, 3, CPU)
    x = torch.randn(4, 3, 64, 64, dtype=torch.double)
    no_coupling(network.train())
    before = torch.get_rng_state()
    draws.begin(7, range(4))
    whole = network(x)
    for i in range(4):
        draws.begin(7, range(i, i + 1))
        torch.testing.assert_close(network(x[i : i + 1]), whole[i : i + 1])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(network.eval()(x), whole)


def test_deeper_branches_are_left_out_as_often_as_in_timm() -> None:
    theirs = timm.create_model("resnet18d", drop_path_rate=0.2)
    expected: list[Any] = [m.drop_prob for m in theirs.modules() if type(m).__name__ == "DropPath"]
    ours = models.build("timm/resnet18d", 5, stochastic_depth=0.2)
    assert [m.p for m in ours.modules() if isinstance(m, StochasticDepth)] == expected
    assert max(expected) == 0.2


def test_dropout_that_was_a_call_stands_before_the_last_layer() -> None:
    """As timm's does: masks of its place give the same logits."""
    ours: Any = models.build("timm/resnet18d", 5, dropout=0.5)
    theirs: Any = timm.create_model("resnet18d", num_classes=5, drop_rate=0.5)
    theirs.load_state_dict(ours.state_dict())
    draw_by_position(ours, 3, CPU).begin(0, range(4))
    x = torch.randn(4, 3, 64, 64)
    features: list[Tensor] = []
    ours.get_submodule("fc").register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    no_coupling(ours.train())
    logits = ours(x)
    dropped = theirs.eval().forward_head(theirs.forward_features(x), pre_logits=True) * 2
    kept = features[0] != 0
    torch.testing.assert_close(features[0][kept], dropped[kept])
    assert 0.3 < (kept.float().sum() / (dropped != 0).sum()).item() < 0.7
    torch.testing.assert_close(logits, theirs.fc(features[0]))
    ours.eval()
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    assert torch.equal(copy.deepcopy(ours)(x), ours(x))


# --------------------------------------------------------------------------------- batch-norm


RANKS = 2


def _normalised(rank: int, folder: str, model: nn.Module, x: Tensor) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    shared = batchnorm.share_statistics(model.train(), RANKS)
    torch.save((shared(x.chunk(RANKS)[rank]).detach(), shared.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def small() -> nn.Module:
    torch.manual_seed(0)
    norm = BatchNormAct2d(4)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias, -1, 1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.BatchNorm2d(4))


@pytest.mark.slow
def test_shared_statistics_keep_the_activation(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    processes = start_processes(
        _normalised, (str(tmp_path), small(), x), nprocs=RANKS, join=False, start_method="fork"
    )
    assert processes is not None
    while not processes.join():
        pass
    found = [torch.load(f"{tmp_path}/{rank}.pt") for rank in range(RANKS)]
    alone = small().train()
    torch.testing.assert_close(torch.cat([out for out, _ in found]), alone(x))
    for _, state in found:
        torch.testing.assert_close(state, dict(alone.state_dict()), atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------- what goes around it


def test_sizes_and_operations() -> None:
    sizes.check("timm/resnet18d", 5, batch_size=8, resolution=64, training=True)
    with pytest.raises(UserError, match=r"timm/vit_tiny_patch16_224: does not take images of 64"):
        sizes.check("timm/vit_tiny_patch16_224", 5, batch_size=2, resolution=64, training=True)
    ours = flops.count(Model(arch="timm/resnet18"), 1000, 224, training=False)
    assert ours == flops.count(Model(arch="resnet18"), 1000, 224, training=False)


def test_what_timm_spares_of_weight_decay_is_spared() -> None:
    network: Any = models.build("timm/vit_tiny_patch16_224", 5)
    names = {id(p): name for name, p in network.named_parameters()}
    spared = {
        names[id(p)]
        for group in optim.parameter_groups(network, False)
        for p in group["params"]
        if not group["decays"]
    }
    expected = {
        names[id(p)]
        for group in param_groups_weight_decay(
            network, 0.1, no_weight_decay_list=network.no_weight_decay()
        )
        for p in group["params"]
        if not group["weight_decay"]
    }
    assert spared == expected
    assert "pos_embed" in spared


def test_layers_are_timms() -> None:
    network = models.build("timm/vit_tiny_patch16_224", 5)
    names = {id(p): name for name, p in network.named_parameters()}
    expected = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(network, layer_decay=0.5)
        for parameter in group["params"]
    }
    assert {name: 0.5**depth for name, depth in layers.depths(network).items()} == expected


@pytest.mark.parametrize(
    ("ours", "theirs"), [("timm/resnet18", "resnet18"), ("resnet18", "timm/resnet18")]
)
def test_resnets_have_the_names_of_torchvisions(ours: str, theirs: str) -> None:
    network, other = models.build(ours, 5), models.build(theirs, 5)
    assert start_from(network, other.state_dict(), "x") == "all layers"
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.eval()(x), other.eval()(x))


def test_layers_that_do_not_fit_are_named() -> None:
    deep = timm.create_model("resnet18d", num_classes=5).state_dict()
    with pytest.raises(
        UserError, match=r"network: conv1\.weight is missing, layer2\.0\.down.* and \d+ more"
    ):
        start_from(models.build("resnet18", 5), deep, "x")


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet50q",
            {},
            r"model\.arch: timm has no network 'resnet50q'; did you mean timm/resnet50",
        ),
        ("resnet50.a1_in1k", {}, r"no network 'resnet50\.a1_in1k'; did you mean timm/resnet50\?"),
        (
            "resnet18",
            {"blurpool": True},
            r"model\.blurpool: is for torchvision's networks; timm has",
        ),
        (
            "vgg11",
            {"stochastic_depth": 0.1},
            r"model\.stochastic_depth: timm/vgg11 has no residual",
        ),
        ("resnet18", {"prior_head_bias": True, "dropout": 0.1}, None),
        (
            "deit_tiny_distilled_patch16_224",
            {},
            r"timm/deit_tiny_distilled_patch16_224 has no single last layer",
        ),
    ],
)
def test_errors_name_the_setting(name: str, options: dict[str, float], message: str | None) -> None:
    if message is None:
        sizes.on_meta(f"timm/{name}", 5, **options)
        return
    with pytest.raises(UserError, match=message):
        sizes.on_meta(f"timm/{name}", 5, **options)


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=r"timm/resnet18 needs timm: pip install 'ffcv_r50\[timm\]'"
    ):
        models.check_arch("timm/resnet18")


class Draws(nn.Module):
    """Drops by the process's own generator, as a function call does."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x.mean((2, 3)), 0.1, self.training)


class Counts(nn.Module):
    """Has statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("mean").lerp_(x.mean((0, 2, 3)), 0.1)
        return x.mean((2, 3)) - self.get_buffer("mean")


class DropsTable(nn.Module):
    """Drops from weights, as some networks do from their tables of relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(16, 3))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.drop(self.table).mean(0)


class Several(nn.Module):
    """Gives logits twice in training."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), x.mean((2, 3))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Draws,
            r"model\.arch=x: draws random numbers \((bernoulli_|native_dropout)\) that depend on",
        ),
        (Counts, r"model\.arch=x: its Counts\.mean changes in training, which could depend on"),
        (DropsTable, r"model\.arch: drops parts of what belongs to no image, which depends on"),
        (Several, r"model\.arch=x: gives something else than one logit for each class"),
    ],
)
def test_what_would_depend_on_the_number_of_processes_is_refused(
    network: type[nn.Module], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "build", lambda *_, **__: network())
    with pytest.raises(UserError, match=message):
        sizes.check("x", 3, batch_size=4, resolution=32, training=True)
    if network is not Several:
        sizes.check("x", 3, batch_size=4, resolution=32, training=False)


@pytest.mark.slow
def test_a_run_of_a_network_of_timms(dataset: Dataset, tmp_path: Path) -> None:
    """With dropout, stochastic depth and statistics that two processes share: killed and continued it
    ends in the same bits, and one process computes the same.
    """
    options = (
        *("--model.arch=timm/test_efficientnet", "--model.dropout=0.2"),
        *("--model.stochastic_depth=0.2", "--training.norm_batch_size=16"),
        *("--training.epochs=1", "--schedule.lr={0: 0.01}", "--schedule.resolution={0: 64}"),
    )
    hook = ranks.at_step(2, signal.SIGKILL)
    for name, count, killed in (("one", 1, False), ("two", 2, False), ("killed", 2, True)):
        arguments = ranks.arguments(dataset, tmp_path / name, *options)
        if killed:
            ranks.run(arguments, tmp_path / name, ranks=count, hook=hook)
        ended = ranks.run(arguments, tmp_path / name, ranks=count)
        assert ended.codes == [FINISHED] * count, ended.outputs
    ranks.assert_same_run(tmp_path / "two", tmp_path / "killed")
    one, two = (ranks.log(tmp_path / name)[-1] for name in ("one", "two"))
    assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-5)
