"""Where a run says what it does: the console and JSON lines."""
