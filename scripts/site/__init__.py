"""Builds docs/ as a site: ``scripts/docs``."""
