"""What can be asked of actions: one module an operation, each usable by itself.

They are functions and small classes over a store and its keyspace;
:class:`~etcd_actions.client.ActionsClient` puts them together.
"""
