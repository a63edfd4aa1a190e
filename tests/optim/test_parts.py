"""Parts with rates of their own: against hand-made groups of torch's and timm's, step by step."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import timm.optim.lamb
import timm.optim.lars
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn

from ffcv_r50 import models, optim
from ffcv_r50.errors import UserError
from ffcv_r50.keyframes import Varying
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.optim import SGD, AdamW, Lamb, Lars, Optimizer, Parts, layers
from ffcv_r50.optim.clipping.agc import AdaptiveClipping
from ffcv_r50.optim.clipping.none import Unclipped
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.losses.cross_entropy import cross_entropy
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.step import TrainStep
from ffcv_r50.training.transforms.normalize import Normalize

CPU = torch.device("cpu")
EPOCHS = 3
STEPS = 2
PASSES = 7
MULTIPLIERS = {
    "stem": Varying({0: 0, 1: 0, 2: 0.8}),
    "body": Varying(0.3),
    "body.1": Varying({0: 1, 3: 4}),
    "head": Varying(10),
}
"""Of the network below: a part that thaws, one inside of another, and a faster head."""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(x * self.scale)).flatten(1))
        return logits


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def multiplier(name: str, epoch: float) -> float:
    """Written out for that network."""
    if name.startswith("stem"):
        return 0.0 if epoch <= 1 else min(0.8, 0.8 * (epoch - 1))
    if name.startswith("body.1"):
        return 1 + epoch
    return 0.3 if name.startswith("body") else 10.0 if name.startswith("head") else 1.0


def epochs() -> Iterator[tuple[int, float]]:
    for number in range(EPOCHS * STEPS):
        yield number, number / STEPS


def gradients(model: nn.Module, number: int) -> None:
    """As StepSums leaves them: none for what is frozen."""
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = drawn if parameter.requires_grad else None


LR, MOMENTUM, DECAY = 0.05, 0.9, 0.1
THEIRS: dict[str, tuple[Optimizer, Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (SGD(nesterov=True), torch.optim.SGD, {"momentum": MOMENTUM, "nesterov": True}),
    "adamw": (AdamW(), torch.optim.AdamW, {"betas": (MOMENTUM, 0.999)}),
    "lamb": (
        Lamb(),
        timm.optim.lamb.Lamb,
        {"betas": (MOMENTUM, 0.999), "max_grad_norm": None, "foreach": False},
    ),
    "lars": (
        Lars(),
        timm.optim.lars.Lars,
        {"momentum": MOMENTUM, "trust_coeff": 0.001, "eps": 1e-8, "foreach": False},
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_each_parameter_steps_as_in_a_group_of_its_own(name: str) -> None:
    """In float64; a group whose rate is 0 is left out of the step, as torch leaves out no gradient."""
    options, theirs, more = THEIRS[name]
    ours = network().double()
    parts = Parts(ours, MULTIPLIERS, epochs=EPOCHS)
    groups = optim.parameter_groups(ours, False, LR, parts)
    optimizer = options.build(groups, momentum=MOMENTUM)

    other = network().double()
    hand_made: list[dict[str, Any]] = []
    for parameter_name, parameter in other.named_parameters():
        decays = parameter.dim() > 1
        hand_made.append(
            {
                "params": [parameter],
                "weight_decay": DECAY if decays else 0.0,
                "always_adapt": decays,
                "name": parameter_name,
            }
        )
    reference = theirs(hand_made, lr=0.0, **more)
    for number, epoch in epochs():
        parts.train(epoch)
        optim.set_hyperparameters(
            optimizer, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, multipliers=parts.at(epoch)
        )
        gradients(ours, number)
        optimizer.step()
        gradients(other, number)
        for group in reference.param_groups:
            group["lr"] = LR * multiplier(group["name"], epoch)
            if group["lr"] == 0:
                group["params"][0].grad = None
                # timm's LAMB counts it in any case.
                group["step"] = group.get("step", torch.zeros(())) - 1
        reference.step()
        for key, parameter in ours.named_parameters():
            torch.testing.assert_close(
                parameter, other.get_parameter(key), rtol=1e-12, atol=0, msg=f"{key} {epoch}"
            )


def test_without_multipliers_the_groups_are_those_of_a_network_without_parts() -> None:
    """So that a run of before continues; the decayed multiplier of 1 is 1 to the bit."""
    model = network()
    parts = Parts(model, {}, Varying(1), layers.depths(model))
    plain, same = (optim.parameter_groups(model, False, 1.0, p) for p in (None, parts))
    assert len(plain) == len(same) == 2
    for a, b in zip(plain, same, strict=True):
        assert [id(p) for p in a.pop("params")] == [id(p) for p in b.pop("params")]
        assert a == b
    assert parts.at(1.3) == [1.0]


# ------------------------------------------------------------------------------------------ freezing


def batches(number: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(number)
    for part in range(PASSES):
        images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)
        targets = torch.randint(5, (6,), generator=generator)
        positions = range(part * 6, part * 6 + 6)
        yield Batch(images, targets, torch.tensor(positions), positions)


def train_step(
    model: nn.Module, options: Optimizer, multipliers: dict[str, Varying], agc: bool = False
) -> TrainStep:
    parts = Parts(model, multipliers, epochs=EPOCHS)
    groups = optim.parameter_groups(model, False, LR, parts)
    clipping = AdaptiveClipping() if agc else Unclipped()
    return TrainStep(
        model,
        options.build(groups, momentum=0.9),
        transforms=[],
        loss=cross_entropy,
        averages={},
        precision=Precision("fp32", CPU),
        draws=draw_by_position(model, 1, CPU),
        forward=Forward(CPU),
        micro_batches=PASSES,
        ranks=1,
        outcomes=Outcomes(12, CPU, each=False),
        parts=parts,
        clipping=clipping.build(model, models.classifier(model)),
    )


def at(number: int) -> Step:
    values = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY, "label_smoothing": 0.0}
    return Step(1, number, number / STEPS, values)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("options", [SGD(), SGD(decoupled=True), AdamW(), Lamb(), Lars()], ids=str)
def test_what_is_frozen_stands_still_to_the_bit_and_then_moves(options: Optimizer) -> None:
    model = network()
    # Statistics that the sum over seven micro-batches, divided by seven, would not give back.
    model.get_buffer("stem.1.running_mean").copy_(torch.tensor([0.1, 0.3, 0.7, 0.9]))
    model.get_buffer("stem.1.running_var").copy_(torch.tensor([0.15, 0.35, 0.75, 0.95]))
    model.stem[1].momentum = 0.9  # type: ignore[assignment]
    step = train_step(model, options, {"stem": MULTIPLIERS["stem"]}, agc=True)
    before, state = copied(model), copy.deepcopy(step.optimizer.state_dict()["state"])
    indices = [i for i, (name, _) in enumerate(ordered(step)) if name.startswith("stem")]
    assert len(indices) == 3
    for number, epoch in epochs():
        step(batches(number), at(number))
        now, states = copied(model), step.optimizer.state_dict()["state"]
        for name, tensor in now.items():
            moves = not torch.equal(tensor, before[name])
            assert moves == (not name.startswith("stem") or epoch > 1), (name, epoch)
        for index in indices:
            for key, value in states.get(index, {}).items():
                was = state[index].get(key) if index in state else None
                unmoved = was is not None and torch.equal(torch.as_tensor(value), was)
                assert unmoved == (epoch <= 1), (index, key, epoch)
    assert model.get_buffer("stem.1.num_batches_tracked") == EPOCHS * STEPS - 3


def ordered(step: TrainStep) -> list[tuple[str, nn.Parameter]]:
    names = {id(p): name for name, p in step.network.named_parameters()}
    groups = step.optimizer.param_groups
    return [(names[id(p)], p) for group in groups for p in group["params"]]


def test_what_is_not_frozen_moves_as_above_a_part_in_evaluation() -> None:
    """A plain loop whose stem has no gradient and normalises with its running statistics."""
    ours, theirs = network(), network()
    step = train_step(ours, SGD(), {"stem": Varying(0), "scale": Varying(0)})
    trained = [*theirs.body.parameters(), *theirs.head.parameters()]
    decaying = [p for p in trained if p.dim() > 1]
    others = [p for p in trained if p.dim() == 1]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)
    theirs.train().stem.eval()
    for number in range(3):
        step(batches(number), at(number))
        optimizer.zero_grad()
        norm = theirs.body[1]
        assert isinstance(norm, nn.BatchNorm2d)
        for batch in batches(number):
            logits = theirs(Normalize(CPU).images(batch.images))
            (nn.functional.cross_entropy(logits, batch.targets) / PASSES).backward()
        optimizer.step()
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()))
    for one, two in zip(ours.stem.parameters(), theirs.stem.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_loaded_state_goes_on_with_the_same_bits() -> None:
    """From a step where the stem is still frozen, and from one where it is not."""
    for cut in (1, 4):
        straight, broken = (train_step(network(), AdamW(), MULTIPLIERS) for _ in range(2))
        for number in range(cut):
            straight(batches(number), at(number))
            broken(batches(number), at(number))
        again = train_step(network(), AdamW(), MULTIPLIERS)
        again.load_state_dict(copy.deepcopy(broken.state_dict()))
        for number in range(cut, EPOCHS * STEPS):
            one, two = (step(batches(number), at(number)) for step in (straight, again))
            assert torch.equal(one, two)
        for name, tensor in straight.network.state_dict().items():
            assert torch.equal(tensor, again.network.state_dict()[name]), name


def test_recomputed_statistics_leave_out_what_is_frozen() -> None:
    model, average = network(), network()
    step = train_step(model, SGD(), MULTIPLIERS)
    step(batches(0), at(0))
    before = copied(average)
    for number, moving in ((0, {"body.1"}), (5, {"body.1", "stem.1"})):
        step.recompute_statistics(average, batches(number), [at(number)])
        after = copied(average)
        moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert moved == {f"{norm}.{name}" for norm in moving for name in statistics}


# -------------------------------------------------------------------------------------- layer decay


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_layer_decay_is_timms(arch: str) -> None:
    model = models.build(arch, 10)
    parts = Parts(model, {}, Varying(0.7), layers.depths(model))
    groups = optim.parameter_groups(model, False, 1.0, parts)
    names = {id(p): name for name, p in model.named_parameters()}
    ours = {}
    for group in groups:
        for parameter in group["params"]:
            ours[names[id(parameter)]] = (parts.at(0.0)[group["part"]], group["decays"])
    theirs = timm.create_model(arch, num_classes=10)
    names = {id(p): name for name, p in theirs.named_parameters()}
    expected = {
        names[id(parameter)]: (
            pytest.approx(group["lr_scale"], rel=1e-12),
            group["weight_decay"] > 0,
        )
        for group in param_groups_layer_decay(theirs, weight_decay=0.1, layer_decay=0.7)
        for parameter in group["params"]
    }
    assert ours == expected


def test_the_layers_of_other_networks_are_their_outermost_modules() -> None:
    depths = layers.depths(models.build("mobilenet_v3_small", 10))
    assert depths["classifier.3.weight"] == 0
    assert depths["classifier.0.bias"] == 1
    assert depths["features.12.0.weight"] == depths["features.12.1.bias"] == 2
    assert depths["features.0.0.weight"] == max(depths.values()) == 14
    assert layers.depths(network()) == {
        **dict.fromkeys(["scale", "stem.0.weight", "stem.1.weight", "stem.1.bias"], 2),
        **dict.fromkeys(["body.0.weight", "body.1.weight", "body.1.bias"], 1),
        **dict.fromkeys(["head.weight", "head.bias"], 0),
    }


def test_multipliers_and_layer_decay_multiply() -> None:
    model = network()
    decay = Varying({0: 1, 2: 0.5})
    parts = Parts(model, {"stem": Varying(3)}, decay, layers.depths(model), epochs=3)
    found = {
        name: parts.at(2.0)[parts.number(name)] for name in ("scale", "stem.1.bias", "body.1.bias")
    }
    assert found == {"scale": 0.25, "stem.1.bias": 0.75, "body.1.bias": 0.5}
    assert set(parts.at(0.0)) == {1.0, 3.0}


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ({"layr1": 0}, "no part 'layr1' to train; did you mean layer1?"),
        ({"layer1.7": 0}, "no part 'layer1.7' to train; did you mean layer1."),
        (
            {"relu": 0},
            "no part 'relu' to train; it has conv1, bn1, layer1, layer2, layer3, layer4, fc",
        ),
        (
            dict.fromkeys(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"), 0),
            "all parts are frozen at epoch 0; nothing would be trained",
        ),
    ],
)
def test_errors_name_the_setting(multipliers: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as refused:
        Parts(
            models.build("resnet18", 5),
            {part: Varying(value) for part, value in multipliers.items()},
            epochs=2,
        )
    assert f"training.lr_multipliers: {'' if 'all' in message[:3] else 'the network has '}" in str(
        refused.value
    )
    assert message in str(refused.value)


def test_frozen_for_a_moment_between_two_keyframes() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    one, two = Varying({0: 1, 1: "step 0", 2: "step 1"}), Varying({0: 0, 1.5: "step 1"})
    with pytest.raises(UserError, match=r"all parts are frozen at epoch 1;"):
        Parts(model, {"0": one, "1": two}, epochs=3)
    Parts(model, {"0": one, "1": two}, epochs=1)  # it ends before
