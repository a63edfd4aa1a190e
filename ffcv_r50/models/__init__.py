"""Networks: torchvision's architectures, with anti-aliased down-sampling where asked for; timm's."""

import math
from typing import Any

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ffcv_r50.errors import InvalidSetting, UserError, nearest
from ffcv_r50.models import timm_networks
from ffcv_r50.models.blurpool import blur_strided_convolutions
from ffcv_r50.models.regularisation import set_dropout, set_stochastic_depth


def build(
    arch: str,
    num_classes: int,
    *,
    blurpool: bool = False,
    zero_init_residual: bool = False,
    prior_head_bias: bool = False,
    stochastic_depth: float | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """A freshly initialised classifier; its parameter names are torchvision's, or timm's.

    Args:
        arch: a name of ``torchvision.models.list_models(torchvision.models)``, or ``timm/`` and one of
            ``timm.list_models()``, see :mod:`ffcv_r50.models.timm_networks`.
        num_classes: size of the last layer.
        blurpool: blur before each strided convolution, see :mod:`ffcv_r50.models.blurpool`.
        zero_init_residual: start the last batch-norm of each residual block at zero, so that every
            block starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        prior_head_bias: start the last layer's bias at -log(classes): where the rest of a logit is 0,
            its sigmoid is about the share that a class has (a prior as in Lin et al. 2017,
            arXiv:1708.02002, section 3.3).
        stochastic_depth: probability of leaving out the last residual branch, see
            :func:`~ffcv_r50.models.regularisation.set_stochastic_depth`; None is the architecture's.
        dropout: probability of the network's dropout; None is the architecture's.

    Returns:
        A module mapping float [n, 3, height, width] to logits [n, num_classes].

    Raises:
        UserError: there is no such classifier, or the option does not apply to it.
    """
    check_arch(arch)
    if arch.startswith(timm_networks.PREFIX):
        if blurpool:
            raise UserError(
                "model.blurpool: is for torchvision's networks; timm has some that blur, such as "
                "timm/resnetblur50"
            )
        model = timm_networks.build(
            arch.removeprefix(timm_networks.PREFIX),
            num_classes,
            zero_init_residual=zero_init_residual,
            stochastic_depth=stochastic_depth,
            dropout=dropout,
        )
    else:
        model = _torchvisions(
            arch, num_classes, blurpool, zero_init_residual, stochastic_depth, dropout
        )
    if prior_head_bias:
        _set_prior(classifier(model), arch)
    return model


def _torchvisions(
    arch: str,
    num_classes: int,
    blurpool: bool,
    zero_init_residual: bool,
    stochastic_depth: float | None,
    dropout: float | None,
) -> nn.Module:
    # These two return auxiliary logits in training, which no recipe of ours has a loss for.
    options = {"aux_logits": False, "init_weights": True} if arch in AUXILIARY else {}
    model: nn.Module = torchvision.models.get_model(
        arch, weights=None, num_classes=num_classes, **options
    )
    if zero_init_residual and not _zero_init_residual(model):
        raise UserError(f"model.zero_init_residual: {arch} has no ResNet blocks; leave it out")
    if blurpool and not blur_strided_convolutions(model):
        raise UserError(f"model.blurpool: {arch} has no strided convolution to blur; leave it out")
    if stochastic_depth is not None and not set_stochastic_depth(model, stochastic_depth):
        raise UserError(f"model.stochastic_depth: {arch} has no residual branches; leave it out")
    if dropout is not None and not set_dropout(model, dropout):
        raise UserError(f"model.dropout: {arch} has no dropout; leave it out")
    return model


def check_arch(arch: str) -> None:
    """Whether there is a classifier of this name.

    Raises:
        InvalidSetting: there is none; names the nearest.
    """
    if arch.startswith(timm_networks.PREFIX):
        timm_networks.check_name(arch.removeprefix(timm_networks.PREFIX))
        return
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        near = nearest(arch, known)
        raise InvalidSetting(
            "model.arch",
            f"torchvision has no classification model '{arch}'"
            + (f"; did you mean {near}?" if near else ""),
        )


def classifier(network: Any) -> nn.Linear | nn.Conv2d:
    """The last layer with weights: what gives the logits."""
    if hasattr(network, "get_classifier"):  # timm's, whose modules may stand in another order
        found: nn.Linear | nn.Conv2d = network.get_classifier()
        return found
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return layers[-1]


AUXILIARY = ("googlenet", "inception_v3")


def _set_prior(head: nn.Linear | nn.Conv2d, arch: str) -> None:
    """Start the classifier as sure of each class as all are on average.

    Raises:
        UserError: it has no bias, or none that training could raise again.
    """
    classes = head.weight.shape[0]
    if isinstance(head, nn.Conv2d):  # SqueezeNet's is below a ReLU: no logit could be below 0
        raise UserError(
            f"model.prior_head_bias: is for networks that end in a linear layer, {arch} ends in a "
            "convolution; leave it out"
        )
    if head.bias is None:
        raise UserError(
            f"model.prior_head_bias: {arch} has a last layer without bias; leave it out"
        )
    nn.init.constant_(head.bias, -math.log(classes))


def _zero_init_residual(model: nn.Module) -> int:
    """Zero the last batch-norm's scale of each block; returns how many there were."""
    count = 0
    for block in model.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.zeros_(last.weight)
            count += 1
    return count
