"""Deployed tasks, with an index in memory, and the projects that clients created or changed."""
