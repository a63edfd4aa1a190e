"""The data path: the file, the order, the crops, the decoding, the loader, the copy to the device.

Nothing in here imports the trainer, and only :mod:`~ffcv_r50.data.loader` and
:mod:`~ffcv_r50.data.transfer` import torch.
"""
