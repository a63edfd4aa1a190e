"""Networks: names, initial weights, anti-aliasing."""

import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ffcv_r50 import models
from ffcv_r50.errors import UserError
from ffcv_r50.models import sizes
from ffcv_r50.models.blurpool import BlurPoolConv2d, shifted_sums


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


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("size", [7, 8])
def test_the_blur_a_compiler_gets_is_the_convolution(stride: tuple[int, int], size: int) -> None:
    """Forward and backward, in float32; in half precision it is rounded once, from float32."""
    x = torch.randn(2, 3, size, size, requires_grad=True)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).expand(3, 1, 3, 3) / 16
    expected = F.conv2d(x, kernel, stride=stride, padding=1, groups=3)
    blurred = shifted_sums(x, stride)
    torch.testing.assert_close(blurred, expected)
    slope = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(blurred, x, slope)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, slope)[0])
    half = x.detach().bfloat16()
    assert torch.equal(shifted_sums(half, stride), shifted_sums(half.float(), stride).bfloat16())


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


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "vgg11", "convnext_tiny", "swin_t", "vit_b_32"])
def test_the_last_bias_starts_at_the_share_of_a_class(arch: str) -> None:
    torch.manual_seed(3)
    plain = models.build(arch, 20)
    torch.manual_seed(3)
    ours = models.build(arch, 20, prior_head_bias=True)
    changed = {
        name
        for name, tensor in ours.state_dict().items()
        if not torch.equal(tensor, plain.state_dict()[name])
    }
    head = models.classifier(ours)
    assert [f"{name}.bias" for name, m in ours.named_modules() if m is head] == [*changed]
    assert head.bias is not None
    torch.testing.assert_close(head.bias.sigmoid() * 21, torch.ones(20))  # odds of 1 in 20


@pytest.mark.slow
def test_every_classifier_ends_in_what_gives_its_logits() -> None:
    """One of each family: nothing with weights comes later, and its outputs are the classes."""
    ends = {}
    known = torchvision.models.list_models(module=torchvision.models)
    for arch in {re.split(r"[_\d]", arch)[0]: arch for arch in known}.values():
        network = sizes.on_meta(arch, 13)
        head = models.classifier(network)
        last = [m for m in network.modules() if [*m.parameters(recurse=False)]][-1]
        assert last is head, arch
        assert head.weight.shape[0] == 13, arch
        ends[arch] = type(head).__name__ + ("" if head.bias is not None else " without bias")
    assert [arch for arch, end in ends.items() if end != "Linear"] == ["maxvit_t", "squeezenet1_1"]


@pytest.mark.parametrize("arch", ["googlenet", "mobilenet_v3_small"])
def test_other_architectures_give_plain_logits_in_training(arch: str) -> None:
    assert models.build(arch, 4).train()(torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_errors_name_the_setting() -> None:
    with pytest.raises(UserError, match=r"model\.arch: .* 'resnet51'; did you mean resnet50\?"):
        models.build("resnet51", 10)
    with pytest.raises(UserError, match=r"model\.zero_init_residual: vgg11 has no ResNet blocks"):
        models.build("vgg11", 10, zero_init_residual=True)
    with pytest.raises(
        UserError, match=r"model\.prior_head_bias: is for .* squeezenet1_1 ends in a convolution"
    ):
        models.build("squeezenet1_1", 10, prior_head_bias=True)
    with pytest.raises(
        UserError, match=r"model\.prior_head_bias: maxvit_t has a last layer without"
    ):
        sizes.on_meta("maxvit_t", 10, prior_head_bias=True)
    with pytest.raises(UserError, match=r"model\.blurpool: vgg11 has no strided convolution"):
        models.build("vgg11", 10, blurpool=True)
