r"""Write a tree of images to a ``.beton`` file.

    python writers/write_imagenet.py --cfg.data_dir=/data/imagenet --cfg.split=train \
        --cfg.write_path=/data/train_500_50_90.beton --cfg.write_mode=proportion
"""

import signal
import sys
from pathlib import Path
from typing import NoReturn

if not __package__:  # run as a script: Python put its folder on the path, not the one above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ffcv_r50.config import command_line
from ffcv_r50.errors import FAULT, exit_with
from writers import writing
from writers.config import Config
from writers.pool import WorkerDied

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def main() -> int | None:
    """Read the settings, write the file; whatever goes wrong is one line on stderr."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    cfg = command_line.read(Config, sys.argv[1:], usage=__doc__ or "").cfg
    try:
        writing.write(cfg)
    except WorkerDied as error:
        return _say(FAULT, f"error: {error}; {cfg.write_path} is as it was")
    except OSError as error:
        reason = error.strerror or error
        return _say(FAULT, f"error: writing {cfg.write_path} failed: {reason}; it is as it was")
    except KeyboardInterrupt:
        return _say(INTERRUPTED, f"interrupted; {cfg.write_path} is as it was")
    return None


def _say(code: int, line: str) -> int:
    print(line, file=sys.stderr, flush=True)
    return code


def run() -> NoReturn:
    """The program ``ffcv-r50-write``."""
    exit_with(main)


if __name__ == "__main__":
    run()
