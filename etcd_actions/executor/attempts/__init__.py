"""Attempts: their directories, commands, processes and outcomes."""
