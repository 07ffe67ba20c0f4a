"""The transport ``grpc``: etcd's gRPC API, over HTTP/2."""
