"""How busy a GPU is, as its driver says (NVML): never worth a run, so whatever fails is no value."""

import importlib
import threading
from typing import Any, NamedTuple

SECONDS = 1.0
"""Between two looks."""


class Usage(NamedTuple):
    """Means of some time."""

    gpu_utilization: float
    """Percent of the time in which some kernel ran."""
    gpu_power_watts: float
    gpu_clock_mhz: float
    """Of its multiprocessors."""


class Monitor:
    """Looks at a GPU now and then, in a thread of its own; at none where the package
    ``nvidia-ml-py`` is not installed.

    Args:
        uuid: of the GPU, without ``GPU-``; empty for none.
    """

    def __init__(self, uuid: str) -> None:
        self._lock = threading.Lock()
        self._seen: list[Usage] = []
        self._closed = threading.Event()
        if uuid:
            threading.Thread(target=self._watch, args=(uuid,), name="nvml", daemon=True).start()

    def take(self) -> dict[str, float]:
        """The means since this was last called, by name; empty where nothing was seen."""
        with self._lock:
            seen, self._seen = self._seen, []
        if not seen:
            return {}
        means = Usage(*(sum(values) / len(seen) for values in zip(*seen, strict=True)))
        return means._asdict()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _watch(self, uuid: str) -> None:
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            while not self._closed.wait(SECONDS):
                usage = _look(nvml, handle)
                with self._lock:
                    self._seen.append(usage)
        except Exception:  # not installed, no driver, not permitted: then nobody knows
            return


def _look(nvml: Any, handle: Any) -> Usage:
    return Usage(
        nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
    )
