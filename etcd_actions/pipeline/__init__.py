"""The processor: it connects watch, follow and record, from a change in etcd to the mark."""
