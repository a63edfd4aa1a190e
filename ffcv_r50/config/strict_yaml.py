"""YAML as settings are written in it: tables, lists and words, nested a few deep; no tags."""

import re
from typing import Any

import yaml

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Line breaks and their like: every value and key is one line, and so is every error."""
DEPTH = 10
"""Tables and lists within each other; settings need five."""


def compose(text: str) -> yaml.Node | None:
    """The nodes of a text, each with its line; None where it says nothing.

    Raises:
        yaml.MarkedYAMLError: it is not YAML, or more than settings are written in; see
            :func:`problem`.
        yaml.YAMLError: it is no text.
    """
    return yaml.compose(text, Loader=_Loader)


def load(text: str) -> Any:
    """The value of a text.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it has none.
    """
    return yaml.load(text, Loader=_Loader)


def problem(error: yaml.YAMLError) -> str:
    """What is wrong, as an error says it."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "not a YAML text file"
    return f"{error.problem}" if isinstance(error, _TooMuch) else f"not YAML: {error.problem}"


class _TooMuch(yaml.MarkedYAMLError):
    """YAML, but more of it than settings are written in."""

    def __init__(self, problem: str, event: yaml.Event) -> None:
        super().__init__(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML's, refusing what no setting is written in."""
        event = self.peek_event()
        if tag := getattr(event, "tag", None):
            raise _TooMuch(f"expected no tags, got '{tag}'", event)
        if isinstance(event, yaml.ScalarEvent) and CONTROL.search(event.value):
            raise _TooMuch("expected text of one line without control characters", event)
        if self.depth == DEPTH:
            raise _TooMuch("is nested deeper than settings are", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        is_key = isinstance(parent, yaml.MappingNode) and index is None
        if is_key and not isinstance(node, yaml.ScalarNode):
            raise _TooMuch("expected a word as a key, got a list or a table", event)
        if is_key and isinstance(node, yaml.ScalarNode) and node.value == "<<":
            # Merged tables merged again multiply: some lines would take all memory.
            raise _TooMuch("expected no merged tables (<<)", event)
        return node
