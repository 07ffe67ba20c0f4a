"""Deployed tasks: one key for each version of each task, and an index of them in memory.

And projects, as far as clients said anything of them: one key for each.
"""
