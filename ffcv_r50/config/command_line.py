"""The command lines of programs that take options of their own, not settings of a run."""

import argparse
from typing import NoReturn

from ffcv_r50.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Instead of the usage and an exit from here.

        Raises:
            UserError: always.
        """
        raise UserError(f"command line: {message}; --help lists the options")
