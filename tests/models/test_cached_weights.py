"""torchvision's weights by their names, from a cache that the test fills."""

from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights

from ffcv_r50 import models
from ffcv_r50.errors import UserError
from ffcv_r50.models import cached_weights
from ffcv_r50.models.pretrained import start_from
from ffcv_r50.run import checkpoint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_the_file_is_the_one_that_torchvision_keeps(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by torchvision itself under that name, without a network."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    torch.manual_seed(0)
    saved = models.build("resnet18", 1000).state_dict()
    torch.save(saved, cache / "resnet18-f37072fd.pth")
    file = cached_weights.file_of("ResNet18_Weights.DEFAULT")
    assert file == cache / "resnet18-f37072fd.pth"
    theirs = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(weights_only=True)
    network = models.build("resnet18", 1000)
    assert start_from(network, checkpoint.load_weights(file), "x") == "all layers"
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name])


def test_a_file_that_is_missing_is_named_with_the_command_that_fetches_it(cache: Path) -> None:
    with pytest.raises(UserError) as refused:
        cached_weights.file_of("ResNet50_Weights.IMAGENET1K_V2")
    assert str(refused.value) == (
        f"model.weights=ResNet50_Weights.IMAGENET1K_V2: torchvision's cache has no {cache}/"
        "resnet50-11ad3fa6.pth; where there is a network, fetch it once by python -c "
        '"from torchvision.models import ResNet50_Weights; '
        'ResNet50_Weights.IMAGENET1K_V2.get_state_dict(check_hash=True)"'
    )


def test_other_names_are_paths() -> None:
    for path in ("runs/a/weights.pt", "my_weights.pt", "ResNet50_Weights.pth"):
        cached_weights.check_name(path)
        assert cached_weights.file_of(path) == Path(path)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(
        UserError,
        match=r"model\.weights: torchvision has no weights 'ResNet50_Weights\.IMAGENET1K_V3'; did you "
        r"mean ResNet50_Weights\.IMAGENET1K_V[12]\?",
    ):
        cached_weights.check_name("ResNet50_Weights.IMAGENET1K_V3")
