"""The data path: the file, the order, the crops, the decoding, the loader.

Nothing in here imports the trainer, and nothing but :mod:`ffcv_r50.data.loader` imports torch.
"""
