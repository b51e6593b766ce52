"""Limits of what users and realms use in all cells together."""
