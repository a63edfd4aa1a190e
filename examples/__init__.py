"""Our loader in other people's training loops."""
