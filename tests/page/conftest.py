"""A client that watches, and an index of runs."""

from tests.server.conftest import client
from tests.server.front.conftest import lists

__all__ = ["client", "lists"]
