"""Deployed tasks: one key for each version of each task, and an index of them in memory."""
