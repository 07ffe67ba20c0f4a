"""The part of etcd that a worker without etcd's credentials uses, over the service."""
