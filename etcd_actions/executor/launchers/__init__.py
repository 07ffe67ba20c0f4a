"""Launchers: each starts the commands of attempts somewhere, and reports how they end."""
