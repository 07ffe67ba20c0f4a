"""The public proxy that breaks connections, under the name that tests import it by."""

from etcd_actions.testing.proxy import Direction, Proxy, open_proxy, pieces_of

__all__ = ["Direction", "Proxy", "open_proxy", "pieces_of"]
