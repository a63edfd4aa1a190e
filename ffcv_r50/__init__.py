"""Train ImageNet classifiers from FFCV ``.beton`` files: the same run on 1, 8 or 64 GPUs.

:class:`Dataset`, :class:`TrainLoader` and :class:`EvalLoader` are for training loops of your own, see
:mod:`ffcv_r50.loading`. They are imported when they are first used: importing the package alone is cheap.
"""

import platform
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffcv_r50.loading import Dataset, EvalLoader, TrainLoader

__version__ = "0.1.0"
__all__ = ["Dataset", "EvalLoader", "TrainLoader", "__version__", "versions"]


def __getattr__(name: str) -> Any:
    if name in ("Dataset", "EvalLoader", "TrainLoader"):
        from ffcv_r50 import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def versions(*libraries: ModuleType) -> dict[str, str]:
    """What shapes a result, by name: this toolkit, Python, and some libraries."""
    return {
        "ffcv_r50": __version__,
        "python": platform.python_version(),
        # torch's is of a class of its own, which torch.load(weights_only=True) refuses.
        **{library.__name__: str(library.__version__) for library in libraries},
    }
