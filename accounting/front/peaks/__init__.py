"""The most sessions that were open at one moment in all cells."""
