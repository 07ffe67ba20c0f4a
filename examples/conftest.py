"""Gives the tests of this folder a real etcd."""

pytest_plugins = ["etcd_actions.testing"]
