"""Keys of actions in etcd: reading, compare-and-swap, claims, retention."""
