"""Cached results of tasks: the keys of calls, the outputs, and their use."""
