"""What a driver says of a GPU, and that nothing depends on one."""

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ffcv_r50.logs import gpu


class Driver:
    """Two looks, then it is gone."""

    NVML_CLOCK_SM = 1

    def __init__(self) -> None:
        self.looks = 0
        self.asked: list[str] = []
        self.gone = threading.Event()

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        self.looks += 1
        if self.looks > 2:
            self.gone.set()
            raise RuntimeError("the GPU is lost")
        return SimpleNamespace(gpu=40 * self.looks)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 300_000

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        assert kind == self.NVML_CLOCK_SM
        return 1500


def test_means_of_what_was_seen_and_nothing_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(gpu, "SECONDS", 0.001)
    monitor = gpu.Monitor("1234")
    assert driver.gone.wait(60)
    assert driver.asked == ["GPU-1234"]
    assert monitor.take() == {
        "gpu_utilization": 60.0,
        "gpu_power_watts": 300.0,
        "gpu_clock_mhz": 1500.0,
    }
    assert monitor.take() == {}
    monitor.close()


@pytest.mark.parametrize("uuid", ["", "1234"])
def test_without_a_gpu_or_the_package_there_is_nothing(
    uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monitor = gpu.Monitor(uuid)
    for thread in threading.enumerate():
        if thread.name == "nvml":
            thread.join(60)
            assert not thread.is_alive()
    assert monitor.take() == {}
