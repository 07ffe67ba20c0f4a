"""The flags and arguments of each command; what a command does is imported when it runs.

A module is imported when one of its commands is named, see
:class:`~etcd_actions.cli.lazy_group.LazyGroup`. None imports trio, a transport or the log.
"""
