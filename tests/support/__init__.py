"""What several tests need: etcd processes, a proxy that breaks connections, an oracle."""
