"""Train an ImageNet classifier: torchrun --nproc_per_node=8 train_imagenet.py --config FILE ..."""

import sys

from ffcv_r50 import errors
from ffcv_r50.config import settings


def main() -> int:
    """Read the configuration and run it; returns the exit code."""
    config = settings.load(sys.argv[1:])
    from ffcv_r50 import trainer  # takes seconds, which a mistake in a setting need not wait for

    return trainer.run(config)


if __name__ == "__main__":
    errors.exit_with(main, together=True)
