"""One step of training, the evaluation, and what they are made of."""
