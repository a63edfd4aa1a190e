"""The layers of a network, as layer-wise decay of the learning rate counts them."""

from collections.abc import Iterator

from torch import nn


def depths(network: nn.Module) -> dict[str, int]:
    """How many layers lie above each parameter.

    Layers are the outermost modules in their order. Sequences are cut into their members, and what has
    no matrix (a norm) belongs to the layer before it. So the layers of a ResNet are its stem, each
    residual block, and the classifier, as in timm's ``ResNet.group_matcher``. Parameters outside of
    modules (tokens, positions) belong to the lowest layer. Networks of timm's say themselves what their
    layers are.

    Args:
        network: its modules stand in the order in which they compute.

    Returns:
        By the parameter's name: 0 for the classifier, most for the stem.
    """
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters

        numbers: dict[str, int] = group_parameters(
            network,
            network.group_matcher(coarse=False),  # type: ignore[operator]
            reverse=True,
        )
        return {name: max(numbers.values()) - number for name, number in numbers.items()}
    layers = [[name for name, _ in network.named_parameters(recurse=False)]]
    begun = False
    for prefix, module in _members(network):
        named = dict(module.named_parameters(prefix=prefix))
        has_matrix = any(parameter.dim() > 1 for parameter in named.values())
        if begun and has_matrix:
            layers.append([])
        layers[-1] += named
        begun = begun or has_matrix
    return {name: len(layers) - 1 - i for i, layer in enumerate(layers) for name in layer}


def _members(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules by name, sequences cut."""
    for name, module in network.named_children():
        if isinstance(module, nn.Sequential):
            yield from ((f"{name}.{inner}", member) for inner, member in module.named_children())
        else:
            yield name, module
