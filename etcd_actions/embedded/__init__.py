"""An etcd of the process's own."""
