"""How the compiled parts are compiled: without the GIL, and kept on disk between runs.

numba keeps compiled code beside the source (``__pycache__``), in ``NUMBA_CACHE_DIR`` where that is
set, or in the user's cache folder where neither can be written. What it keeps of a function is valid
for one state of that function's file, but contains the code of every function that it calls, from
other files too. So each :func:`njit_cached` function that calls others is a closure over
:data:`CHECKSUM`, which numba makes part of the key: an edit anywhere in this package compiles anew
instead of running old code.
"""

import contextlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

Function = TypeVar("Function", bound=Callable[..., Any])

CHECKSUM = zlib.crc32(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
)
"""Checksum of the source of this package: what compiled code is valid for."""


def njit(function: Function) -> Function:
    """Compile a function that only other compiled functions call (and tests)."""
    compiled: Any = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, compiled)


def njit_cached(function: Function) -> Function:
    """Compile a function that Python calls, and keep it on disk.

    Several processes may compile it at once: numba renames whole files into place, the last wins.
    Where it cannot be kept, every start compiles.
    """
    compiled: Any = njit(function)
    with contextlib.suppress(RuntimeError):  # numba knows no folder that can be written
        compiled._cache = _Cache(function)  # what ``cache=True`` does, with numba's own
    return cast(Function, compiled)


def cfunc_cached(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that is called by its address, and keep it on disk.

    Args:
        signature: numba's, of numbers and addresses.

    Returns:
        A decorator. What it makes has the C function as its attribute ``ctypes``, which both Python and
        numba can call.
    """

    def compile_now(function: Callable[..., Any]) -> Any:
        options = {"error_model": "numpy"}
        compiled: Any = CFunc(function, normalize_signature(signature), locals={}, options=options)
        with contextlib.suppress(RuntimeError):
            compiled._cache = _Cache(function)
        compiled.compile()
        return compiled

    return compile_now


class _Cache(FunctionCache):
    """Numba's, but a full disk is no reason not to run what has just been compiled."""

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code for the next start, if that is possible."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)
