"""An etcd that the process runs itself; see :mod:`~etcd_actions.embedded.embedded_etcd`."""
