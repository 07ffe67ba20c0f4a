"""A client that watches."""

from tests.server.conftest import client

__all__ = ["client"]
