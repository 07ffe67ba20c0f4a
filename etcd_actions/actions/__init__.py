"""The operations on actions: one module each, each usable by itself.

They are functions and small classes over a store and its keyspace;
:class:`~etcd_actions.client.ActionsClient` puts them together.
"""
