"""What wnids mean, where a file of the dataset says it."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from writers.sources.files import read_text

FILES = {
    "LOC_synset_mapping.txt": re.compile(r"(n[0-9]{8}) (.+)"),  # Kaggle's
    "words.txt": re.compile(
        r"(n[0-9]{8})\t(.+)"
    ),  # WordNet's, as ImageNet and Tiny ImageNet have it
}
"""Name of a file -> the form of its lines: wnid and words."""


def beside(folders: Sequence[Path]) -> dict[str, str]:
    """The words of each wnid, by the first of the files that is in one of the folders and can be read."""
    for folder in folders:
        for name, form in FILES.items():
            with contextlib.suppress(OSError):
                found = map(form.fullmatch, read_text(folder / name).splitlines())
                return {line[1]: line[2].strip() for line in found if line}
    return {}
