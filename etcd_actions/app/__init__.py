"""What ``etcd-actions run`` puts together, as the settings say."""
