"""A configuration file of ffcv-imagenet as a recipe of ours."""

import sys

from ffcv_r50.config import ffcv_imagenet, reference
from ffcv_r50.errors import exit_with

USAGE = """\
usage: python -m ffcv_r50.tools.import_recipe FILE [--section.name=value ...] > recipe.yaml

Print the recipe that trains what a configuration file of ffcv-imagenet
(github.com/libffcv/ffcv-imagenet) says there. The words of its own command line are understood,
--config-file=FILE too. What the recipe does not say is named in its first lines.
"""


def main() -> None:
    """Print the recipe; exit as :func:`errors.exit_with` says."""
    exit_with(
        lambda: reference.print_page(ffcv_imagenet.from_command_line(sys.argv[1:], USAGE).rstrip())
    )


if __name__ == "__main__":
    main()
