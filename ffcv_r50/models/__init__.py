"""Networks, anti-aliasing and batch-norm statistics."""
