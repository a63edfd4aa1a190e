"""Programs beside the training: what a recipe means, whether a machine is ready."""
