"""Batch-norm whose statistics belong to the recipe, not to the number of processes.

Running statistics advance once per optimizer step. A step's batch is normalised in parts
(``training.norm_batch_size`` samples each), one after the other on one process or side by side on
many. Left to itself, torch would advance the running averages once per part and keep a different
average on each process. Here a step advances them once, by the mean over all its parts, so they do
not depend on how the parts were spread.

Where there are more processes than parts, several share one: :func:`share_statistics` lets them
normalise by the statistics of all their samples together.
"""

import itertools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ffcv_r50 import distributed


class RunningStatistics:
    """Gathers the batch statistics of a step and advances the model's running averages.

    Takes over the momentum of the model's batch-norms: during a step their buffers hold the
    statistics of the last part (momentum 1), after :meth:`advance` the running averages again.
    A model without batch-norm has :attr:`size` 0 and every call does nothing. Norms that are in
    evaluation mode during a step (those of frozen parts) keep their averages to the bit.

    Args:
        model: already on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = norms = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]
        self._buffers: list[Tensor] = []
        self._counts: list[Tensor] = []
        momenta: list[Tensor] = []
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            assert norm.momentum is not None, "a cumulative average has no step to advance by"
            self._buffers += [norm.running_mean, norm.running_var]
            self._counts.append(norm.num_batches_tracked)
            momenta.append(torch.full((2 * norm.num_features,), norm.momentum))
            norm.momentum = 1.0
        self.size = sum(buffer.numel() for buffer in self._buffers)
        """Numbers in a step's statistics: all means and variances, concatenated."""
        if norms:
            self._momenta = torch.cat(momenta).to(self._buffers[0].device)
            self._average = torch.empty_like(self._momenta)

    def begin(self) -> None:
        """Before a step's first forward pass: keep the running averages."""
        if self.size:
            torch.cat(self._buffers, out=self._average)

    def add_to(self, sums: Tensor) -> None:
        """After each forward pass: add this part's statistics to ``sums`` (float [size])."""
        if self.size:
            sums += torch.cat(self._buffers)

    def advance(self, mean: Tensor, parts: int) -> None:
        """After the last forward pass: one step of the running averages.

        Args:
            mean: float [size], the mean of the statistics over all parts of all processes.
            parts: forward passes of this process in this step.
        """
        if self.size:
            self.replace(self._average.lerp_(mean, self._momenta))
            counts = itertools.compress(self._counts, [norm.training for norm in self._norms])
            if moving := list(counts):
                torch._foreach_sub_(moving, parts - 1)

    def replace(self, statistics: Tensor) -> None:
        """Set the running averages of the norms that are in training mode.

        Args:
            statistics: float [size].
        """
        sizes = [buffer.numel() for buffer in self._buffers]
        training = [norm.training for norm in self._norms for _ in ("mean", "var")]
        if buffers := list(itertools.compress(self._buffers, training)):
            parts = itertools.compress(statistics.split(sizes), training)
            torch._foreach_copy_(buffers, list(parts))


def share_statistics(model: nn.Module, group_size: int) -> nn.Module:
    """Let each ``group_size`` neighbouring ranks normalise their samples together.

    All ranks must call it, with equally many samples in every later forward pass of training.
    Parameters, buffers and their names stay as they are.

    Args:
        model: already on its device.
        group_size: ranks that share statistics; divides the number of ranks. With 1, nothing
            changes.

    Returns:
        The model; another object only where it is itself a batch-norm.
    """
    if group_size == 1:
        return model
    group, _ = dist.new_subgroups(group_size, timeout=distributed.collective_timeout())
    return _replace(model, group)


def _is_followed(norm: nn.Module) -> bool:
    """Whether it is timm's BatchNormAct2d, which drops and activates what it normalised."""
    return hasattr(norm, "drop") and hasattr(norm, "act")


def _replace(module: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return (FollowedGroupBatchNorm if _is_followed(module) else GroupBatchNorm)(module, group)
    for name, child in module.named_children():
        module.add_module(name, _replace(child, group))
    return module


class GroupBatchNorm(_BatchNorm):
    """What torch's SyncBatchNorm computes, with one collective each way, on CPUs too.

    Python never waits for the device, and to torch.compile it is one operation in the graph.

    Args:
        norm: whose parameters, buffers and options it takes over.
        group: processes that normalise together, each with equally many values per channel.
    """

    def __init__(self, norm: _BatchNorm, group: dist.ProcessGroup) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)
        self._group = group
        self._ranks = dist.get_world_size(group)
        _GROUPS[group.group_name] = group

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions goes, as long as the second is the channels."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [n, channels, ...] over all dimensions but the channels, and over the group."""
        if not self.training:
            return super().forward(input)
        out: Tensor
        out, mean, var, _ = _normalise(
            input, self.weight, self.bias, self.eps, self._group.group_name
        )
        if self.running_mean is not None:
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            count = input.numel() // self.num_features * self._ranks
            unbiased = var.detach() * (count / (count - 1))
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        return out


class FollowedGroupBatchNorm(GroupBatchNorm):
    """The same of timm's BatchNormAct2d: with its dropout and activation behind it."""

    def __init__(self, norm: Any, group: dist.ProcessGroup) -> None:
        super().__init__(norm, group)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`GroupBatchNorm`, then drop and activate."""
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


_GROUPS: dict[str, dist.ProcessGroup] = {}
"""By name: operations that a compiler knows take nothing but tensors and plain values."""


@torch.library.custom_op(
    "ffcv_r50::group_normalise",
    mutates_args=(),
    schema="(Tensor input, Tensor? weight, Tensor? bias, float eps, str group)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _normalise(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ioffe and Szegedy 2015 (arXiv:1502.03167), with the means taken over a group of processes.

    Returns:
        The normalised input, and float mean, biased variance and 1 / deviation [channels].
    """
    own = torch.stack(_moments(input, eps))
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(_GROUPS[group]))]
    dist.all_gather(everyone, own, _GROUPS[group])
    means, variances = torch.stack(everyone, 1)
    mean = means.mean(0)
    # Chan et al. 1979: adding up squares instead would cancel where the mean is large.
    var = (variances + (means - mean).square()).mean(0)
    invstd = (var + eps).rsqrt()
    if input.is_cuda:
        out = torch.batch_norm_elemt(_dense(input), weight, bias, mean, invstd, eps)
        return out, mean, var, invstd
    x = input.float()
    scale = invstd if weight is None else invstd * weight
    out = (x - _wide(mean, x)) * _wide(scale, x)
    if bias is not None:
        out += _wide(bias, x)
    return out.to(input.dtype), mean, var, invstd


@_normalise.register_fake
def _(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = input.new_empty(input.shape[1], dtype=torch.float32)
    return torch.empty_like(input), mean, torch.empty_like(mean), torch.empty_like(mean)


@torch.library.custom_op(
    "ffcv_r50::group_normalise_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor input, Tensor? weight, Tensor mean, Tensor invstd, str group)"
    " -> (Tensor, Tensor, Tensor)",
)
def _normalise_backward(
    grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias; those of weight and bias are this process's part."""
    ranks = dist.get_world_size(_GROUPS[group])
    count = grad.numel() // grad.shape[1]
    if grad.is_cuda:
        grad, input = _dense(grad), _dense(input)
        sum_grad, sum_product, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            grad, input, mean, invstd, weight, True, True, True
        )
        sums = torch.stack([sum_grad, sum_product])
        dist.all_reduce(sums, group=_GROUPS[group])
        counts = torch.full((ranks,), count, dtype=torch.int32, device=grad.device)
        grad_input = torch.batch_norm_backward_elemt(
            grad, input, mean, invstd, weight, sums[0], sums[1], counts
        )
        return grad_input, grad_weight, grad_bias
    grad = grad.float()
    normalised = (input.float() - _wide(mean, input)) * _wide(invstd, input)
    dims = _all_but_channels(grad)
    grad_bias, grad_weight = grad.sum(dims), (grad * normalised).sum(dims)
    sums = torch.stack([grad_bias, grad_weight])
    dist.all_reduce(sums, group=_GROUPS[group])
    sums /= count * ranks
    scale = invstd if weight is None else invstd * weight
    grad_input = (grad - _wide(sums[0], grad) - normalised * _wide(sums[1], grad)) * _wide(
        scale, grad
    )
    return grad_input.to(input.dtype), grad_weight, grad_bias


@_normalise_backward.register_fake
def _(
    grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(input), torch.empty_like(mean), torch.empty_like(mean)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight, bias, _, ctx.group = inputs
    _, mean, _, invstd = output
    ctx.save_for_backward(input, weight, mean, invstd)
    ctx.has_bias = bias is not None


def _gradients(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, mean, invstd = ctx.saved_tensors
    grad_input, grad_weight, grad_bias = _normalise_backward(
        grad, input, weight, mean, invstd, ctx.group
    )
    if weight is None:
        grad_weight = None
    return grad_input, grad_weight, grad_bias if ctx.has_bias else None, None, None


_normalise.register_autograd(_gradients, setup_context=_keep)


def _moments(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """float mean and biased variance [channels] of this process's values."""
    if input.is_cuda:
        mean, invstd = torch.batch_norm_stats(_dense(input), eps)
        return mean, (invstd.square().reciprocal() - eps).clamp(min=0)
    x = input.float()
    var, mean = torch.var_mean(x, _all_but_channels(x), correction=0)
    return mean, var


def _dense(x: Tensor) -> Tensor:
    """In one of the two layouts that torch's kernels take."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if channels_last else x.contiguous()


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _wide(channels: Tensor, x: Tensor) -> Tensor:
    """[channels] -> [1, channels, 1, ...], to go with ``x``."""
    return channels.view(1, -1, *[1] * (x.dim() - 2))
