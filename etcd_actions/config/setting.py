"""One setting, and the groups that settings are shown in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar, cast

from etcd_actions.config.kinds import Kind

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Scope: TypeAlias = Literal["all", "run", "backend", "worker"]

# These have the names and the meaning of etcdctl's variables.
_OF_ETCDCTL = re.compile(
    "cacert|cert|command_timeout|dial_timeout|endpoints|insecure_skip_tls_verify|"
    "insecure_transport|keepalive_time|keepalive_timeout|key|password|user"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting(Generic[T_co]):
    """One setting.

    Attributes:
        name: Its name in Python and in files.
        kind: The kind of its values.
        help: Its meaning, a sentence without the full stop.
        default: The text of its default value; None for no value.
        otherwise: The effect of no value.
        group: Its heading in help and documents.
        scope: The commands that have it: ``all``, only ``run``, only ``worker``, or only those that
            can use the service instead of etcd (``backend``).
    """

    name: str
    kind: Kind[T_co]
    help: str
    default: str | None
    otherwise: str
    group: str
    scope: Scope

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        prefix = "ETCDCTL" if _OF_ETCDCTL.fullmatch(self.name) else "ETCD_ACTIONS"
        return f"{prefix}_{self.name.upper()}"

    @property
    def default_value(self) -> T_co:
        """The value of the default."""
        return cast(T_co, None) if self.default is None else self.kind.parse(self.default)


@dataclass(frozen=True)
class Group:
    """Settings under one heading, which the same commands have."""

    title: str
    scope: Scope = "all"

    def setting(self, name: str, kind: Kind[T], default: str, text: str) -> Setting[T]:
        """A setting with a default."""
        return self._setting(name, kind, text, default, "none")

    def optional(
        self, name: str, kind: Kind[T], text: str, otherwise: str = "none"
    ) -> Setting[T | None]:
        """A setting without a default; ``otherwise`` describes the effect of no value."""
        return self._setting(name, kind, text, None, otherwise)

    def _setting(
        self, name: str, kind: Kind[T], text: str, default: str | None, otherwise: str
    ) -> Setting[T]:
        return Setting(
            name=name,
            kind=kind,
            help=text,
            default=default,
            otherwise=otherwise,
            group=self.title,
            scope=self.scope,
        )
