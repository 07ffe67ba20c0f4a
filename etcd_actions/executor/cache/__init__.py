"""Cached results of tasks: which call, which outputs, when they are used."""
