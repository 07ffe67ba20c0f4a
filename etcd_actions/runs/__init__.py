"""Runs as people look at them: what was asked for, how it went, and an index of them."""
