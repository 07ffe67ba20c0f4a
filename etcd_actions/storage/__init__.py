"""Keys in etcd: reads, compare-and-swap, claims, retention, the base of an index in memory."""
