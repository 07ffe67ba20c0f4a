"""Small parts that every package of etcd_actions may use. They are not public."""
