"""What a recipe will take on a machine, before it starts: hours, money, cores, disk, memory."""
