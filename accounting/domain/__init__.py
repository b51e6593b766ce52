"""The rules, pure: no I/O, no clock, no logging, standard library only."""
