"""Programs that other interpreters run as files: they import nothing of etcd_actions."""
