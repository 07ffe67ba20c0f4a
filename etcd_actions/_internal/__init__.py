"""Small parts for all packages of etcd_actions, and for no other program."""
