"""The pure rules: without I/O, clock or logging, on the standard library alone."""
