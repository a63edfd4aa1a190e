"""Starting runs on a SLURM cluster; programs, not a library."""
