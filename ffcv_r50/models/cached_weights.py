"""torchvision's published weights by the names it gives them, from its cache; never from the network.

Many ranks would all download, and clusters' nodes often cannot.
"""

import difflib
import re
from pathlib import Path

import torch
import torchvision
from torchvision.models import WeightsEnum

from ffcv_r50.errors import InvalidSetting, UserError

NAME = re.compile(r"\w+_Weights\.[A-Z]\w*")
"""``ResNet50_Weights.IMAGENET1K_V2``, ``ResNet50_Weights.DEFAULT``."""


def check_name(name: str) -> None:
    """Whether torchvision knows such weights, where the name is of that form.

    Raises:
        InvalidSetting: it does not; names the nearest.
    """
    if NAME.fullmatch(name) and name not in (known := _known()):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InvalidSetting("model.weights", f"torchvision has no weights '{name}'{hint}")


def file_of(name: str) -> Path:
    """Where the weights lie: torchvision's by name in its cache, others under the path they are.

    Raises:
        UserError: the cache has no such file; says how it comes there.
    """
    if not NAME.fullmatch(name):
        return Path(name)
    weights = _known()[name]
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    if not file.is_file():
        kind = type(weights).__name__
        raise UserError(
            f"model.weights={name}: torchvision's cache has no {file}; where there is a network, fetch "
            f'it once by python -c "from torchvision.models import {kind}; '
            f'{kind}.{weights.name}.get_state_dict(check_hash=True)"'
        )
    return file


def _known() -> dict[str, WeightsEnum]:
    classes = {
        torchvision.models.get_model_weights(arch)
        for arch in torchvision.models.list_models(module=torchvision.models)
    }
    return {
        f"{cls.__name__}.{name}": weights
        for cls in classes
        for name, weights in cls.__members__.items()
    }
