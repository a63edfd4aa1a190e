"""Networks: names, initial weights, anti-aliasing."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ffcv_r50 import models
from ffcv_r50.errors import UserError
from ffcv_r50.models.blurpool import BlurPoolConv2d


@pytest.mark.parametrize("blurpool", [False, True])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_weights_have_torchvisions_names_and_initial_values(arch: str, blurpool: bool) -> None:
    torch.manual_seed(3)
    ours = models.build(arch, 7, blurpool=blurpool).state_dict()
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(arch, num_classes=7).state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def blurred_like_ffcv_imagenet(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Blur at stride 1 with [1 2 1] x [1 2 1] / 16, then the convolution with its own stride."""
    row = torch.tensor([1.0, 2.0, 1.0])
    kernel = (row[:, None] * row[None, :] / 16).expand(x.shape[1], 1, 3, 3)
    blurred = F.conv2d(x, kernel, padding=1, groups=x.shape[1])
    return F.conv2d(blurred, conv.weight, conv.bias, conv.stride, conv.padding)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(16, 8, 1, stride=2),  # the blur takes the stride over: same result
        nn.Conv2d(16, 8, 5, stride=3, padding=2),
    ],
)
@pytest.mark.parametrize("size", [7, 8])
def test_blurpool_blurs_before_the_convolution(conv: nn.Conv2d, size: int) -> None:
    x = torch.randn(2, 16, size, size)
    torch.testing.assert_close(BlurPoolConv2d.like(conv)(x), blurred_like_ffcv_imagenet(conv, x))


def test_blurpool_spares_the_stem_and_convolutions_without_stride() -> None:
    model = models.build("resnet50", 10, blurpool=True)
    blurred = {name for name, m in model.named_modules() if isinstance(m, BlurPoolConv2d)}
    assert blurred == {
        *(f"layer{i}.0.conv2" for i in (2, 3, 4)),
        *(f"layer{i}.0.downsample.0" for i in (2, 3, 4)),
    }


@pytest.mark.parametrize(("arch", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual_makes_blocks_identities(arch: str, last: str) -> None:
    model = models.build(arch, 10, zero_init_residual=True)
    zeros = {
        name for name, p in model.named_parameters() if name.endswith("weight") and not p.any()
    }
    blocks = {
        n for n, m in model.named_modules() if type(m).__name__ in ("BasicBlock", "Bottleneck")
    }
    assert zeros == {f"{block}.{last}.weight" for block in blocks}


@pytest.mark.parametrize("arch", ["googlenet", "mobilenet_v3_small"])
def test_other_architectures_give_plain_logits_in_training(arch: str) -> None:
    assert models.build(arch, 4).train()(torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_errors_name_the_setting() -> None:
    with pytest.raises(UserError, match=r"model\.arch: .* 'resnet51'; did you mean resnet50\?"):
        models.build("resnet51", 10)
    with pytest.raises(UserError, match=r"model\.zero_init_residual: vgg11 has no ResNet blocks"):
        models.build("vgg11", 10, zero_init_residual=True)
    with pytest.raises(UserError, match=r"model\.blurpool: vgg11 has no strided convolution"):
        models.build("vgg11", 10, blurpool=True)
