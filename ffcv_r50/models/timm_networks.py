"""timm's networks, held to the same promises as torchvision's.

What could not be promised is refused: here by what a network is made of, in
:mod:`ffcv_r50.models.sizes` by what it does in a step.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from ffcv_r50.errors import InvalidSetting, UserError, nearest

PREFIX = "timm/"


def check_name(name: str) -> None:
    """Whether timm is there and has a network of this name.

    Args:
        name: as timm calls it.

    Raises:
        InvalidSetting: there is no timm, or it has none; names the nearest.
    """
    try:
        import timm
    except ImportError as error:
        raise InvalidSetting(
            "model.arch", f"{PREFIX}{name} needs timm: pip install 'ffcv_r50[timm]'"
        ) from error
    known = timm.list_models()
    if name not in known:
        near = nearest(name.partition(".")[0], known)  # a tag says which weights, not which network
        raise InvalidSetting(
            "model.arch",
            f"timm has no network '{name}'" + (f"; did you mean {PREFIX}{near}?" if near else ""),
        )


def build(
    name: str,
    num_classes: int,
    *,
    zero_init_residual: bool,
    stochastic_depth: float | None,
    dropout: float | None,
) -> nn.Module:
    """A freshly initialised network; its parameter names and initial weights are timm's.

    Args:
        name: as timm calls it.
        num_classes: size of the last layer.
        zero_init_residual: start the last norm of each residual block at zero. Where it is false,
            timm's networks start as they do there: its ResNets with zeros in any case.
        stochastic_depth: timm's ``drop_path_rate``; None is the architecture's.
        dropout: timm's ``drop_rate``, before the last layer; None is the architecture's.

    Raises:
        UserError: the network is not one that trains in the same way on any number of processes, or
            an option does not apply to it.
    """
    import timm

    arch = f"{PREFIX}{name}"
    rates: dict[str, Any] = {"drop_path_rate": stochastic_depth, "drop_rate": dropout}
    try:
        model: nn.Module = timm.create_model(
            name, num_classes=num_classes, **{k: v for k, v in rates.items() if v is not None}
        )
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise UserError(_no_branches(arch)) from error
        if "drop_rate" in str(error):
            raise UserError(_no_dropout(arch)) from error
        raise
    _check_modules(model, arch)
    if zero_init_residual:
        blocks: list[Any] = [m for m in model.modules() if hasattr(m, "zero_init_last")]
        if not blocks:
            raise UserError(f"model.zero_init_residual: {arch} has no ResNet blocks; leave it out")
        for block in blocks:
            block.zero_init_last()
    depths = _keep_stochastic_depth(model)
    if stochastic_depth and not any(depths):
        raise UserError(_no_branches(arch))
    _keep_dropout(model)
    drops = [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
    if dropout and dropout not in drops:
        raise UserError(_no_dropout(arch))
    return model


def _no_branches(arch: str) -> str:
    return f"model.stochastic_depth: {arch} has no residual branches that could be left out; leave it out"


def _no_dropout(arch: str) -> str:
    return f"model.dropout: {arch} has no dropout; leave it out"


def _check_modules(model: Any, arch: str) -> None:
    """Refuse what is known not to keep the promises.

    Raises:
        UserError: there is such a module.
    """
    from timm.layers.norm_act import BatchNormAct2d

    if not isinstance(model.get_classifier(), (nn.Linear, nn.Conv2d)):
        raise UserError(
            f"model.arch: {arch} has no single last layer that could be replaced for other classes; "
            "choose another network"
        )
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and (type(module) not in known or not module.momentum):
            raise UserError(
                f"model.arch: the statistics of its {type(module).__name__} would depend on the "
                "number of processes; choose another network"
            )


def _keep_stochastic_depth(model: nn.Module) -> list[float]:
    """Put torchvision's modules, which later draw by position, in the place of timm's.

    Returns:
        Their probabilities.
    """
    from timm.layers.drop import DropPath

    found = []
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is DropPath and child.scale_by_keep:
                setattr(parent, name, StochasticDepth(child.drop_prob, "row"))
                found.append(child.drop_prob)
    return found


def _keep_dropout(model: Any) -> None:
    """Make a module, which later draws by position, of dropout that is a function call.

    timm's older networks call ``F.dropout(x, self.drop_rate)`` before their last layer.
    """
    rate = getattr(model, "drop_rate", 0.0)
    if rate and not any(isinstance(m, nn.Dropout) and m.p == rate for m in model.modules()):
        head = model.get_classifier()
        head.dropout = nn.Dropout(rate)
        head.register_forward_pre_hook(_drop_input)
        model.drop_rate = 0.0


def _drop_input(head: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (head.dropout(inputs[0]),)
