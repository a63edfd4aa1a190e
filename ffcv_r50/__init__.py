"""Train ImageNet classifiers from FFCV ``.beton`` files: the same run on 1, 8 or 64 GPUs."""

__version__ = "0.1.0"
