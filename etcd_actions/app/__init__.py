"""The parts of ``etcd-actions run``; :mod:`~etcd_actions.app.app` starts them in order."""
