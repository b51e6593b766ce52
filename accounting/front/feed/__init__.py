"""The feed of a front: the events of all cells in one order."""
