"""The operations on actions, one module each.

They are functions and small classes over a store and a keyspace;
:class:`~etcd_actions.client.ActionsClient` combines them.
"""
