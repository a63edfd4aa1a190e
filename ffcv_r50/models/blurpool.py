"""Anti-aliased down-sampling: blur, then stride (Zhang 2019, arXiv:1904.11486).

As in ffcv-imagenet the blur stands before each convolution with a stride above one and at least
16 input channels, which spares the stem. The convolution keeps its place and its parameter name,
so checkpoints carry plain torchvision names with and without the blur.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_CHANNELS = 16


class BlurPoolConv2d(nn.Conv2d):
    """A strided convolution that first blurs its input with the 3 x 3 binomial filter."""

    blur: Tensor

    @classmethod
    def like(cls, conv: nn.Conv2d) -> "BlurPoolConv2d":
        """The same convolution with the blur before it; shares ``conv``'s parameters."""
        # On the meta device nothing is drawn from the random generator: the initial weights are
        # the same with and without blurpool.
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
        )
        new.weight = conv.weight
        new.bias = conv.bias
        binomial = torch.tensor([1.0, 2.0, 1.0], device=conv.weight.device) / 4
        kernel = torch.outer(binomial, binomial).expand(conv.in_channels, 1, 3, 3).contiguous()
        new.register_buffer("blur", kernel, persistent=False)
        return new

    def forward(self, input: Tensor) -> Tensor:
        """Blur and convolve [n, in_channels, h, w]; the output has the plain convolution's shape."""
        pointwise = self.kernel_size == (1, 1) and self.padding == (0, 0)
        # A 1 x 1 convolution reads every stride-th blurred pixel: only those are computed.
        blur_stride = self.stride if pointwise else (1, 1)
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            blurred = shifted_sums(input, blur_stride)
        else:
            blurred = F.conv2d(
                input,
                self.blur.to(input.dtype),
                stride=blur_stride,
                padding=1,
                groups=self.in_channels,
            )
        if pointwise:
            return F.conv2d(blurred, self.weight, self.bias, groups=self.groups)
        return super().forward(blurred)


def shifted_sums(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The blur as sums, which a compiler fuses with what is before it; of a convolution it cannot.

    Args:
        x: [n, channels, h, w].
        stride: of rows and of columns.

    Returns:
        What the depthwise convolution gives, rounded once, in the type of ``x``.
    """
    rows, columns = stride
    height, width = x.shape[2:]
    wide = F.pad(x.float(), (1, 1, 1, 1))
    a, b, c = (wide[:, :, shift : shift + height : rows] for shift in range(3))
    tall = 0.25 * a + 0.5 * b + 0.25 * c
    a, b, c = (tall[:, :, :, shift : shift + width : columns] for shift in range(3))
    blurred = 0.25 * a + 0.5 * b + 0.25 * c
    return blurred.to(x.dtype)


def blur_strided_convolutions(model: nn.Module) -> int:
    """Put the blur before the strided convolutions of ``model``, in place.

    Returns:
        How many convolutions were changed.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if (
                type(child) is nn.Conv2d
                and max(child.stride) > 1
                and child.in_channels >= MIN_CHANNELS
            ):
                setattr(parent, name, BlurPoolConv2d.like(child))
                count += 1
    return count
