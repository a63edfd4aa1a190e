"""``python -m ffcv_r50.config``: the settings as the table in ``docs/settings.md``, or as a JSON Schema."""

import json
import sys
from typing import Annotated

from pydantic import Field

from ffcv_r50.config import command_line, reference, schema
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import exit_with
from ffcv_r50.registry import Options


class Printed(Options):
    """What is printed."""

    as_schema: Annotated[bool, Field(alias="schema")] = False
    """The JSON Schema of recipes, which is kept as `rcp/recipe.schema.json`."""


def main() -> None:
    """Print the settings."""
    options = command_line.read(Printed, sys.argv[1:], usage=__doc__ or "")
    if options.as_schema:
        found = schema.schema(Config, "A recipe of ffcv_r50")
        reference.print_page(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        reference.print_page(reference.table(Config))


if __name__ == "__main__":
    exit_with(main)
