"""What outlives a process: the folder of a run, its checkpoints, copies of its data."""
