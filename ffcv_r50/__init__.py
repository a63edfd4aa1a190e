"""Train ImageNet classifiers from FFCV ``.beton`` files: the same run on 1, 8 or 64 GPUs."""

import platform
from types import ModuleType

__version__ = "0.1.0"


def versions(*libraries: ModuleType) -> dict[str, str]:
    """What shapes a result, by name: this toolkit, Python, and some libraries."""
    return {
        "ffcv_r50": __version__,
        "python": platform.python_version(),
        # torch's is of a class of its own, which torch.load(weights_only=True) refuses.
        **{library.__name__: str(library.__version__) for library in libraries},
    }
