"""The transport ``grpc``: etcd over HTTP/2."""
