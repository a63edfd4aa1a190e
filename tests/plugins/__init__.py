"""One file each for an optimizer, a loss, transforms, an average and a log sink of somebody else's.

Importing this package registers them; nothing else of the toolkit knows that they are there.
"""

from tests.plugins import hinge, invert, latest, note, sign_sgd, step_lines

__all__ = ["hinge", "invert", "latest", "note", "sign_sgd", "step_lines"]
