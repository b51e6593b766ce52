"""What a front and its cells have in common: rules of realms, names of sources, erasures.

Set on the front, and brought to all cells.
"""
