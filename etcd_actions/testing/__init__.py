"""What tests of programs that use etcd need: an etcd."""
