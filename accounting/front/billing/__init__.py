"""What a front bills: the statements and adjustments of its cells, as one."""
