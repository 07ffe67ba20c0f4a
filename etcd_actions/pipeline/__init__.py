"""Puts watch, follow and record together: from a change in etcd to the mark."""
