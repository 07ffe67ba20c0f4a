"""What each command does; its flags are in :mod:`etcd_actions.cli.parsing`."""
