"""The page: static files, which read all data from the service with its own methods."""

from etcd_actions.page.static_files import StaticFiles

__all__ = ["StaticFiles"]
