"""Weights to start from, against ``load_state_dict``."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from ffcv_r50 import models, saved
from ffcv_r50.config import settings
from ffcv_r50.errors import UserError
from ffcv_r50.models.pretrained import start_from


def resnet(classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("resnet18", classes)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_all_layers_of_the_same_network(prefix: str) -> None:
    ours, theirs = resnet(5), resnet(5, seed=1)
    saved = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    assert start_from(ours, saved, "x") == "all layers"
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("squeezenet1_1", "classifier.1"),
        ("vit_b_16", "heads.head"),
    ],
)
def test_another_number_of_classes_keeps_the_new_last_layer(arch: str, head: str) -> None:
    names = [f"{head}.weight", f"{head}.bias"]
    ours = models.build(arch, 7)
    theirs = torchvision.models.get_model(arch, num_classes=10)
    before = {name: ours.state_dict()[name].clone() for name in names}
    taken = start_from(ours, theirs.state_dict(), "x")
    assert taken.startswith(f"all layers but the last ({', '.join(names)})")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, before.get(name, theirs.state_dict()[name])), name


def test_older_files_have_no_counts_of_batches() -> None:
    theirs = resnet(5, seed=1).state_dict()
    old = {name: tensor for name, tensor in theirs.items() if "num_batches" not in name}
    ours = resnet(5)
    start_from(ours, old, "x")
    assert torch.equal(ours.get_buffer("bn1.running_mean"), theirs["bn1.running_mean"])


def test_weights_of_another_network_are_refused_by_layer() -> None:
    ours = resnet(5)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    wide = torchvision.models.resnet34(num_classes=5).state_dict()
    with pytest.raises(UserError, match=r"model.weights=f: weights of another network: layer1.2.c"):
        start_from(ours, wide, "model.weights=f")
    del (few := resnet(5, seed=1).state_dict())["layer2.0.conv1.weight"]
    with pytest.raises(UserError, match=r"network: layer2.0.conv1.weight is missing$"):
        start_from(ours, few, "x")
    other = resnet(5, seed=1).state_dict()
    other["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(UserError, match=r"conv1.weight is 64 x 3 x 3 x 3, not 64 x 3 x 7 x 7$"):
        start_from(ours, other, "x")
    for name, tensor in before.items():
        assert torch.equal(ours.state_dict()[name], tensor)


class TheirBlurPool(nn.Module):
    """As ffcv-imagenet's, by its names."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel = torch.tensor([[[[1, 2, 1], [2, 4, 2], [1, 2, 1]]]]) / 16.0
        self.conv = conv
        self.register_buffer("blur_filter", kernel.repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel: torch.Tensor = self.blur_filter  # type: ignore[assignment]
        blurred = nn.functional.conv2d(x, kernel, padding=1, groups=self.conv.in_channels)
        out: torch.Tensor = self.conv(blurred)
        return out


def test_checkpoints_of_ffcv_imagenet_evaluate(tmp_path: Path) -> None:
    """Its final_weights.pt: in DistributedDataParallel, with a blur before strided convolutions."""
    theirs = resnet(5, seed=1)
    for parent in list(theirs.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
                setattr(parent, name, TheirBlurPool(child))
    file = tmp_path / "final_weights.pt"
    torch.save({f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}, file)
    recipe = Path(__file__).parents[2] / "rcp" / "rn18_16ep.yaml"
    config = settings.load([f"--config={recipe}"], needs_data=False)
    ours = saved.load(config, file, torch.device("cpu"))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))
    config = settings.load([f"--config={recipe}", "--model.blurpool=0"], needs_data=False)
    with pytest.raises(UserError, match=r"trained with blurpool; pass --model\.blurpool=true"):
        saved.load(config, file, torch.device("cpu"))
