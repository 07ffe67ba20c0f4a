"""The users and roles of an etcd, by the JSON form of its Auth service.

It does what ``etcdctl user``, ``role`` and ``auth`` do, in a tenth of the processor time: each call
of that is a process, and the users of a test take ten calls.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from etcd_actions.etcd import Tls, User
from etcd_actions.etcd.api import KeyRange

Kind = Literal["read", "write", "readwrite"]

EVERYTHING = KeyRange(b"\0", b"\0")

_TIMEOUT = 5.0


class EtcdUsers:
    """Changes users, roles and permissions.

    Args:
        endpoints: The members, as ``host:port``; the first that can be reached answers.
        tls: How clients connect; None for plain connections.
        root: Who asks, once there are users.
    """

    def __init__(
        self, endpoints: Sequence[str], *, tls: Tls | None = None, root: User | None = None
    ) -> None:
        self._endpoints = endpoints
        self._tls = tls
        self.root = root

    def add(self, user: User) -> None:
        """Make a user."""
        self.ask("user/add", name=user.name, password=user.password)

    def delete(self, user: User) -> None:
        """Delete a user."""
        self.ask("user/delete", name=user.name)

    def give(self, user: User, role: str) -> None:
        """Give a user a role."""
        self.ask("user/grant", user=user.name, role=role)

    def add_role(self, role: str) -> None:
        """Make a role without permissions."""
        self.ask("role/add", name=role)

    def delete_role(self, role: str) -> None:
        """Delete a role."""
        self.ask("role/delete", role=role)

    def grant(self, role: str, kind: Kind, keys: KeyRange) -> None:
        """Give a role a permission."""
        self.ask("role/grant", name=role, perm={"permType": kind.upper(), **_range(keys)})

    def revoke(self, role: str, keys: KeyRange) -> None:
        """Take a permission of exactly these keys from a role."""
        self.ask("role/revoke", role=role, **_range(keys))

    def enable(self) -> None:
        """Want users from now on."""
        self.ask("enable")

    def disable(self) -> None:
        """Want no users any more."""
        self.ask("disable")

    def ask(self, method: str, **fields: object) -> dict[str, Any]:
        """Call a method of the Auth service.

        Raises:
            RuntimeError: etcd refuses it, or no member answers.
        """
        complaint: object = "there is no endpoint"
        for endpoint in self._endpoints:
            try:
                return self._ask(endpoint, method, fields)
            except OSError as error:
                complaint = error
        raise RuntimeError(f"{method}: {complaint}")

    def _ask(self, endpoint: str, method: str, fields: Mapping[str, object]) -> dict[str, Any]:
        headers = {}
        if self.root is not None:
            asked = {"name": self.root.name, "password": self.root.password}
            headers["Authorization"] = self._send(endpoint, "authenticate", asked, {})["token"]
        return self._send(endpoint, method, fields, headers)

    def _send(
        self, endpoint: str, method: str, fields: Mapping[str, object], headers: dict[str, str]
    ) -> dict[str, Any]:
        connection = self._connection(endpoint)
        try:
            connection.request("POST", f"/v3/auth/{method}", json.dumps(fields), headers)
            response = connection.getresponse()
            text = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{endpoint} broke off its answer: {error!r}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{method}: {text.decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _connection(self, endpoint: str) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(endpoint, timeout=_TIMEOUT)
        context = ssl.create_default_context(cafile=str(self._tls.ca))
        if self._tls.cert is not None:
            context.load_cert_chain(self._tls.cert, self._tls.key)
        return http.client.HTTPSConnection(endpoint, timeout=_TIMEOUT, context=context)


def _range(keys: KeyRange) -> dict[str, str]:
    pair = {"key": keys.start, "range_end": keys.end}
    return {name: base64.b64encode(part).decode() for name, part in pair.items()}
