"""``python -m writers.inspect FILE``: what a ``.beton`` file holds, and whether it is whole."""
