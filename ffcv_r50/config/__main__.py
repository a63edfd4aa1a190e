"""``python -m ffcv_r50.config``: the settings as the table in the README."""

from ffcv_r50.config import reference
from ffcv_r50.config.settings import Config

if __name__ == "__main__":
    reference.print_page(reference.table(Config))
