"""Parameter groups by the type of their module, and optimizers as torch's."""

from typing import Any

import pytest
import torch
from torch import nn

from ffcv_r50 import models, optim
from ffcv_r50.config import declaration, reader
from ffcv_r50.config.settings import Config
from ffcv_r50.optim import OPTIMIZERS, SGD, AdamW, Optimizer

SCHEDULE = [(0.05, 0.9, 0.01), (0.02, 0.95, 0.02), (0.01, 0.85, 0.0), (0.01, 0.9, 0.03)]
"""Learning rate, momentum and weight decay of some steps."""


def decays(model: nn.Module, decay_norm_and_bias: bool) -> dict[str, float]:
    groups = optim.parameter_groups(model, decay_norm_and_bias)
    optimizer = SGD().build(groups, momentum=0.9)
    optim.set_hyperparameters(optimizer, lr=1.0, momentum=0.9, weight_decay=0.1)
    of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters()}


def test_norms_of_the_downsampling_branch_do_not_decay_either() -> None:
    found = decays(models.build("resnet18", 10), decay_norm_and_bias=False)
    assert found["layer2.0.downsample.1.weight"] == 0
    assert found["layer2.0.downsample.0.weight"] == 0.1
    assert found["bn1.weight"] == found["bn1.bias"] == found["fc.bias"] == 0
    assert found["fc.weight"] == found["conv1.weight"] == 0.1
    assert sum(value == 0.1 for value in found.values()) == 20 + 1  # convolutions, classifier


def test_every_parameter_is_in_one_group() -> None:
    for arch in ("resnet18", "convnext_tiny", "vit_b_32"):
        model = models.build(arch, 10)
        groups = optim.parameter_groups(model, False)
        ids = [id(p) for group in groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_all_decay_when_asked() -> None:
    assert set(decays(models.build("resnet18", 10), decay_norm_and_bias=True).values()) == {0.1}


# ---------------------------------------------------------------------------- steps as torch's


def network() -> nn.Sequential:
    """Convolutions in channels-last, as training keeps them, and parameters that do not decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    return model.to(memory_format=torch.channels_last)


def backward(model: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    model.zero_grad()
    model(torch.randn(5, 3, 8, 8)).square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad[(0,) * parameter.dim()] = -0.0


def train(options: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = options.build(optim.parameter_groups(model, False), momentum=0.9)
    for step, (lr, momentum, weight_decay) in enumerate(SCHEDULE):
        optim.set_hyperparameters(optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay)
        backward(model, step)
        optimizer.step()
    return optimizer


def train_with_torch(kind: type[Any], model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """The same steps, written by hand."""
    decaying = [model[0].weight, model[3].weight]  # type: ignore[index]
    others = [p for p in model.parameters() if all(p is not q for q in decaying)]
    optimizer = kind([{"params": decaying}, {"params": others}], lr=1.0, **options)
    for step, (lr, momentum, weight_decay) in enumerate(SCHEDULE):
        for group, decay in zip(optimizer.param_groups, (weight_decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = lr, decay
            if "betas" in group:
                group["betas"] = (momentum, 0.99)
            else:
                group["momentum"] = momentum
        backward(model, step)
        optimizer.step()
    return optimizer


def bits(tensor: torch.Tensor) -> bytes:
    assert tensor.isfinite().all()
    return tensor.detach().contiguous().numpy().tobytes()


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs_to_the_bit(nesterov: bool) -> None:
    ours, theirs = network(), network()
    one = train(SGD(nesterov=nesterov), ours)
    two = train_with_torch(torch.optim.SGD, theirs, momentum=0.9, nesterov=nesterov)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert bits(a) == bits(b)
        assert bits(one.state[a]["momentum_buffer"]) == bits(two.state[b]["momentum_buffer"])
        assert one.state[a]["momentum_buffer"].stride() == two.state[b]["momentum_buffer"].stride()


def test_adamw_is_torchs() -> None:
    ours, theirs = network(), network()
    train(AdamW(beta2=0.99, eps=1e-6), ours)
    train_with_torch(torch.optim.AdamW, theirs, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert bits(a) == bits(b)


def test_momentum_buffers_are_there_before_the_first_step() -> None:
    """A first step that fp16 skips reads none that nobody wrote; the next is a first step."""
    ours, theirs = network(), network()
    one = SGD().build(optim.parameter_groups(ours, True), momentum=0.9)
    two = torch.optim.SGD(theirs.parameters(), lr=0.5, momentum=0.9)
    for parameter in ours.parameters():
        assert not one.state[parameter]["momentum_buffer"].any()
    optim.set_hyperparameters(one, lr=0.5, momentum=0.9, weight_decay=0.0)
    for model, optimizer in ((ours, one), (theirs, two)):
        backward(model, 0)
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert bits(a) == bits(b)
        assert bits(one.state[a]["momentum_buffer"]) == bits(two.state[b]["momentum_buffer"])


@pytest.mark.cuda
def test_a_first_step_that_overflows_leaves_no_garbage() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    parameter = nn.Parameter(torch.ones(1000, device="cuda"))
    optimizer = SGD().build([{"params": [parameter], "decays": False}], momentum=0.9)
    optim.set_hyperparameters(optimizer, lr=0.5, momentum=0.9, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cuda")
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(parameter, torch.full_like(parameter, 0.5))


# ---------------------------------------------------------------------------------- saved states


@pytest.mark.parametrize("options", [SGD(nesterov=True), AdamW()])
def test_a_saved_state_continues_and_changes_no_option(options: Optimizer) -> None:
    whole = network()
    saved = train(options, whole).state_dict()
    assert saved["param_groups"][0]["fused"] is False
    again = network()
    again.load_state_dict(whole.state_dict())
    optimizer = options.build(optim.parameter_groups(again, False), momentum=0.8)
    for group in optimizer.param_groups:  # as on a GPU
        group["fused"] = True
    before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optim.load_state(optimizer, saved)
    after = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert after == before
    for parameter, state in zip(again.parameters(), _states(saved, whole, again), strict=True):
        for key, value in state.items():
            assert torch.equal(optimizer.state[parameter][key], value)


def _states(
    saved: dict[str, Any], whole: nn.Module, again: nn.Module
) -> list[dict[str, torch.Tensor]]:
    """The saved states in the order of the network's parameters."""
    order = [p for group in optim.parameter_groups(again, False) for p in group["params"]]
    index = {id(parameter): i for i, parameter in enumerate(order)}
    return [saved["state"][index[id(parameter)]] for parameter in again.parameters()]


def test_a_state_of_before_has_no_marks_of_decay() -> None:
    model = network()
    saved = train(SGD(), model).state_dict()
    for group in saved["param_groups"]:
        del group["decays"]
    optimizer = SGD().build(optim.parameter_groups(model, False), momentum=0.9)
    optim.load_state(optimizer, saved)
    assert [group["decays"] for group in optimizer.param_groups] == [True, False]


def test_a_state_of_another_kind_of_optimizer_is_refused() -> None:
    saved = train(SGD(), network()).state_dict()
    optimizer = AdamW().build(optim.parameter_groups(network(), False), momentum=0.9)
    with pytest.raises(ValueError, match="of another kind of optimizer"):
        optim.load_state(optimizer, saved)


def test_a_state_of_another_network_is_refused() -> None:
    saved = train(SGD(), network()).state_dict()
    optimizer = SGD().build(optim.parameter_groups(nn.Linear(3, 2), False), momentum=0.9)
    with pytest.raises(ValueError, match=r"has groups of \[1, 1\] parameters, the saved state of"):
        optim.load_state(optimizer, saved)


# --------------------------------------------------------------------------------------- by name


def test_an_optimizer_that_registers_itself_works_by_name() -> None:
    @OPTIMIZERS.register("signs")
    class Signs(Optimizer):
        """The sign of the gradient, no more."""

        gain: float = 1.0
        """Of each step."""

        def build(self, groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.Optimizer:
            return torch.optim.Rprop(groups, lr=0.1)

    try:
        text = (
            "training: {epochs: 1, batch_size: 1}\noptimizer: {name: signs, gain: 0.5}\n"
            "schedule: {lr: {0: 1}, resolution: {0: 32}}"
        )
        config = declaration.build(Config, reader.from_yaml(Config, text, "x.yaml"))
        assert config.optimizer == Signs(gain=0.5)
        assert (
            declaration.build(Config, reader.from_yaml(Config, config.to_yaml(), "y.yaml"))
            == config
        )
        groups = optim.parameter_groups(nn.Linear(3, 2), False)
        assert isinstance(config.optimizer.build(groups, momentum=0.9), torch.optim.Rprop)
    finally:
        del OPTIMIZERS._classes["signs"]
