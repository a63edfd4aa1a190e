"""Train an ImageNet classifier: torchrun --nproc_per_node=8 train_imagenet.py --config FILE ..."""

import sys

from ffcv_r50 import errors, trainer
from ffcv_r50.config import settings


def main() -> int:
    """Read the configuration and run it; returns the exit code."""
    return trainer.run(settings.load(sys.argv[1:]))


if __name__ == "__main__":
    errors.exit_with(main, together=True)
