"""The flags and arguments of each command; its job is imported when it runs.

:class:`~etcd_actions.cli.lazy_group.LazyGroup` imports a module when one of its commands is named.
No module here imports trio, a transport or structlog.
"""
