"""Recorded histories of changes: their formats. No I/O."""
