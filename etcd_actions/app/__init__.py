"""What ``etcd-actions run`` consists of; :mod:`~etcd_actions.app.app` puts it together."""
