"""What :mod:`ffcv_r50.build` sets up in the process."""

import resource

import torch

from ffcv_r50 import build
from ffcv_r50.config import settings
from tests.conftest import REPOSITORY


def test_on_a_cpu_a_step_gets_the_memory_that_the_last_one_freed() -> None:
    """Without it each round's 120 MB are 30,000 page faults again; with it, those of the first two."""
    recipe = settings.load([f"--config={REPOSITORY / 'rcp' / 'digits.yaml'}"], needs_data=False)
    build.set_up_torch(recipe, torch.device("cpu"))
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(30 << 20, dtype=torch.uint8) for _ in range(4)]
        del blocks
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
