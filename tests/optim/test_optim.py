"""Parameter groups by the type of their module, and optimizers as torch's, timm's and the papers'."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm.optim.lamb
import timm.optim.lars
import torch
from torch import Tensor, nn

from ffcv_r50 import models, optim
from ffcv_r50.config import declaration, reader
from ffcv_r50.config.settings import Config
from ffcv_r50.optim import OPTIMIZERS, SGD, Adam, AdamW, Lamb, Lars, Optimizer

SCHEDULE = [(0.05, 0.9, 0.01), (0.02, 0.95, 0.02), (0.01, 0.85, 0.0), (0.01, 0.9, 0.03)]
"""Learning rate, momentum and weight decay of some steps."""
PEAK = 0.2
"""The highest learning rate, which these steps do not reach."""


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


@pytest.mark.slow
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


def train(
    options: Optimizer, model: nn.Module, gradients: list[list[Tensor]] | None = None
) -> torch.optim.Optimizer:
    """Some steps; notes the gradients of each in the order of the parameters."""
    optimizer = options.build(optim.parameter_groups(model, False, PEAK), momentum=0.9)
    for step, (lr, momentum, weight_decay) in enumerate(SCHEDULE):
        optim.set_hyperparameters(optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay)
        backward(model, step)
        if gradients is not None:
            gradients.append([p.grad.clone() for p in model.parameters()])  # type: ignore[union-attr]
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


@pytest.mark.parametrize(("kind", "torchs"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_adam_and_adamw_are_torchs(kind: type[AdamW], torchs: type[Any]) -> None:
    ours, theirs = network(), network()
    train(kind(beta2=0.99, eps=1e-6), ours)
    train_with_torch(torchs, theirs, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
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


# ------------------------------------------------------------------- steps as in papers and timm


class ByHand:
    """Formulas on numbers of Python, one parameter at a time.

    Args:
        parameter: before the first step.
        decays: whether weight decay, and with it the layer's own rate, apply to it.
    """

    def __init__(self, parameter: Tensor, decays: bool) -> None:
        self.w = parameter.detach().flatten().tolist()
        self.decays = decays
        self.v = [0.0] * len(self.w)
        self.squares = [0.0] * len(self.w)
        self.number = 0

    def decoupled_sgd(self, g: list[float], lr: float, momentum: float, decay: float) -> None:
        decay = decay if self.decays else 0.0
        self.v = [momentum * v + d for v, d in zip(self.v, g, strict=True)]
        self.w = [w - lr / PEAK * decay * w for w in self.w]
        self.w = [w - lr * v for w, v in zip(self.w, self.v, strict=True)]

    def lars(self, g: list[float], lr: float, momentum: float, decay: float) -> None:
        if self.decays:
            local = 0.02 * norm(self.w) / (norm(g) + decay * norm(self.w) + 1e-3)
            g = [local * (d + decay * w) for d, w in zip(g, self.w, strict=True)]
        self.v = [momentum * v + d for v, d in zip(self.v, g, strict=True)]
        self.w = [w - lr * v for w, v in zip(self.w, self.v, strict=True)]

    def lamb(self, g: list[float], lr: float, momentum: float, decay: float) -> None:
        self.number += 1
        self.v = [momentum * v + (1 - momentum) * d for v, d in zip(self.v, g, strict=True)]
        self.squares = [0.99 * v + 0.01 * d * d for v, d in zip(self.squares, g, strict=True)]
        update = []
        for w, v, square in zip(self.w, self.v, self.squares, strict=True):
            mean = v / (1 - momentum**self.number)
            root = math.sqrt(square / (1 - 0.99**self.number))
            update.append(mean / (root + 1e-4) + (decay * w if self.decays else 0.0))
        ratio = norm(self.w) / norm(update) if self.decays else 1.0
        self.w = [w - lr * ratio * u for w, u in zip(self.w, update, strict=True)]


def norm(numbers: list[float]) -> float:
    return math.sqrt(math.fsum(x * x for x in numbers))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("decoupled_sgd", SGD(decoupled=True)),
        ("lars", Lars(trust=0.02, eps=1e-3)),
        ("lamb", Lamb(beta2=0.99, eps=1e-4)),
    ],
)
def test_steps_by_hand(name: str, options: Optimizer) -> None:
    model = network()
    # A layer, too, where the decay of a step is 0: that of SCHEDULE's third.
    hands = [ByHand(p, decays=p.dim() > 1) for p in model.parameters()]
    gradients: list[list[Tensor]] = []
    train(options, model, gradients)
    for (lr, momentum, decay), of_step in zip(SCHEDULE, gradients, strict=True):
        for hand, gradient in zip(hands, of_step, strict=True):
            getattr(hand, name)(gradient.flatten().tolist(), lr, momentum, decay)
    for hand, parameter in zip(hands, model.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.detach().double().flatten(),
            torch.tensor(hand.w, dtype=torch.float64),
            rtol=1e-5,
            atol=1e-7,
        )


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_timms(nesterov: bool) -> None:
    ours, theirs = network(), network()
    train(Lars(trust=0.02, eps=1e-3, nesterov=nesterov), ours)
    groups = [
        {**group, "always_adapt": group["decays"]}
        for group in optim.parameter_groups(theirs, False)
    ]
    optimizer = timm.optim.lars.Lars(
        groups, momentum=0.9, nesterov=nesterov, trust_coeff=0.02, eps=1e-3, foreach=False
    )
    go_on(optimizer, theirs)
    torch.testing.assert_close([*ours.parameters()], [*theirs.parameters()], rtol=1e-5, atol=1e-7)


def test_lamb_is_timms() -> None:
    ours, theirs = network(), network()
    train(Lamb(beta2=0.99, eps=1e-4), ours)
    groups = [
        {**group, "always_adapt": group["decays"]}
        for group in optim.parameter_groups(theirs, False)
    ]
    optimizer = timm.optim.lamb.Lamb(
        groups, betas=(0.9, 0.99), eps=1e-4, max_grad_norm=None, foreach=False
    )
    go_on(optimizer, theirs)
    torch.testing.assert_close([*ours.parameters()], [*theirs.parameters()], rtol=1e-5, atol=1e-7)


def go_on(optimizer: torch.optim.Optimizer, model: nn.Module, first: int = 0) -> None:
    """The steps of SCHEDULE from one on."""
    for step, (lr, momentum, weight_decay) in [*enumerate(SCHEDULE)][first:]:
        optim.set_hyperparameters(optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay)
        backward(model, step)
        optimizer.step()


def test_decoupled_decay_keeps_nesterovs_momentum_torchs() -> None:
    """Without decay it is torch's SGD, with and without Nesterov's momentum."""
    for nesterov in (False, True):
        ours, theirs = network(), network()
        groups = optim.parameter_groups(ours, False)
        one = SGD(decoupled=True, nesterov=nesterov).build(groups, momentum=0.9)
        two = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=0.9, nesterov=nesterov)
        for step in range(3):
            for model, optimizer in ((ours, one), (theirs, two)):
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 / (step + 1)
                backward(model, step)
                optimizer.step()
        torch.testing.assert_close([*ours.parameters()], [*theirs.parameters()])


@pytest.mark.parametrize("options", [Lars(), Lamb()])
def test_a_layer_of_zeros_moves_at_the_plain_rate(options: Optimizer) -> None:
    """Both papers' ratios are 0 / 0 there; it would never leave zero."""
    layer = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = options.build(optim.parameter_groups(layer, False), momentum=0.0)
    optim.set_hyperparameters(optimizer, lr=0.5, momentum=0.0, weight_decay=0.1)
    for gradient, expected in ((torch.zeros(2, 3), 0.0), (torch.ones(2, 3), -0.5)):
        layer.weight.grad = gradient
        before = layer.weight.detach().clone()
        optimizer.step()
        if isinstance(options, Lamb) and expected:  # Adam's correction after a step of zeros
            expected = -0.5 / (math.sqrt(0.001 / (1 - 0.999**2)) + 1e-6)
        torch.testing.assert_close(layer.weight.detach() - before, torch.full((2, 3), expected))


@pytest.mark.parametrize(
    "options",
    [SGD(decoupled=True, nesterov=True), Lars(), Lamb()],
    ids=["decoupled", "lars", "lamb"],
)
def test_a_step_that_overflowed_leaves_no_trace(options: Optimizer) -> None:
    """The first one, before there is any state, and one in between."""
    models = [network(), network()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    built = [
        options.build(optim.parameter_groups(model, False, PEAK), momentum=0.9) for model in models
    ]
    for step, (lr, momentum, decay) in enumerate(SCHEDULE):
        for model, optimizer, overflows in zip(models, built, (False, True), strict=True):
            optim.set_hyperparameters(optimizer, lr=lr, momentum=momentum, weight_decay=decay)
            for factor in (math.inf, 1.0) if overflows and step in (0, 2) else (1.0,):
                backward(model, step)
                model[0].weight.grad.mul_(factor)  # type: ignore[union-attr, operator]
                scaler.scale(torch.zeros(()))
                scaler.step(optimizer)
                scaler.update(1.0)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert bits(a) == bits(b)


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


ALL = [
    SGD(nesterov=True),
    SGD(decoupled=True),
    Adam(),
    AdamW(),
    Lars(nesterov=True),
    Lamb(),
]


@pytest.mark.parametrize("options", ALL, ids=str)
def test_a_saved_state_goes_on_with_the_same_bits(options: Optimizer, tmp_path: Path) -> None:
    straight = network()
    whole = train(options, straight)
    broken = copy.deepcopy(straight)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    again = options.build(optim.parameter_groups(broken, False, PEAK), momentum=0.5)
    optim.load_state(again, torch.load(tmp_path / "state.pt"))
    for model, optimizer in ((straight, whole), (broken, again)):
        go_on(optimizer, model)
    for a, b in zip(straight.parameters(), broken.parameters(), strict=True):
        assert bits(a) == bits(b)


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


@pytest.mark.parametrize(
    ("before", "now"), [(SGD(), AdamW()), (SGD(), Lars()), (AdamW(), Lamb()), (Lars(), Lamb())]
)
def test_a_state_of_another_kind_of_optimizer_is_refused(before: Optimizer, now: Optimizer) -> None:
    saved = train(before, network()).state_dict()
    optimizer = now.build(optim.parameter_groups(network(), False), momentum=0.9)
    with pytest.raises(ValueError, match="of another kind of optimizer"):
        optim.load_state(optimizer, saved)


def test_a_state_of_another_network_is_refused() -> None:
    saved = train(SGD(), network()).state_dict()
    optimizer = SGD().build(optim.parameter_groups(nn.Linear(3, 2), False), momentum=0.9)
    with pytest.raises(ValueError, match=r"has groups of \[1, 1\] parameters, the saved state of"):
        optim.load_state(optimizer, saved)


@pytest.mark.parametrize("value", [torch.ones(7), torch.tensor(1.0), "x", 0.5, "sparse"])
def test_a_buffer_of_another_shape_is_refused(value: Any) -> None:
    saved = train(SGD(), network()).state_dict()
    state = saved["state"][0]
    state["momentum_buffer"] = state["momentum_buffer"].to_sparse() if value == "sparse" else value
    optimizer = SGD().build(optim.parameter_groups(network(), False), momentum=0.9)
    with pytest.raises(ValueError, match="the momentum_buffer of parameter 0 has another shape"):
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
