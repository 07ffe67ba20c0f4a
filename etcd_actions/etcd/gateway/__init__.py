"""The transport ``gateway``: etcd over its JSON gateway, HTTP/1.1."""
