"""Runs: their records and histories, an index of them, their creation and removal."""
