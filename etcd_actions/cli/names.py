"""The names of runs and actions in commands, and their lookup.

A command accepts ``RUN``, ``RUN/ACTION``, the name of the action's object (``<run>-<action>``),
``<namespace>/<object>``, or the full path: ``<project>/<domain>/<run>`` or
``<project>/<domain>/<run>/<action>``, with ``<org>/`` before the latter. For an unknown name the
error has the nearest names, for an ambiguous name the candidates.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import ConfigError, DecodeError, EtcdActionsError, NotFound, first_error
from etcd_actions.model import ROOT_ACTION, ActionId, canonical_name, task_action_name

FORMS: Final = (
    "give RUN, RUN/ACTION, the object's name (<run>-<action>), or "
    "<project>/<domain>/<run>/<action>, with the organisation before that if there is one"
)
# The most parts of a name between slashes.
_MOST_PARTS: Final = 5
_MOST_SHOWN: Final = 5
_NEAR: Final = 0.6


class Name(NamedTuple):
    """A run or an action.

    Attributes:
        action: The action's name; empty for a run.
        org: The organisation; empty if the text names none.
        namespace: The namespace of its object; empty if that is unknown.
        object: The name of its object; the only name of a value that cannot be decoded.
        reason: Why its value cannot be decoded; empty if it can.
    """

    project: str = ""
    domain: str = ""
    run: str = ""
    action: str = ""
    org: str = ""
    namespace: str = ""
    object: str = ""
    reason: str = ""

    @property
    def path(self) -> str:
        """The full path, without the organisation."""
        if not self.run:
            return f"{self.namespace}/{self.object}"
        return "/".join(filter(None, (self.project, self.domain, self.run, self.action)))

    @property
    def run_path(self) -> str:
        """The full path of its run."""
        return f"{self.project}/{self.domain}/{self.run}"

    @property
    def action_id(self) -> ActionId:
        """The action; the root of a run."""
        return ActionId(self.project, self.domain, self.run, self.action or ROOT_ACTION, self.org)

    def may_be(self, action: ActionId | None, namespace: str, name: str) -> bool:
        """Whether a parsed name may mean an action; the name of a run means all its actions.

        Args:
            action: The action; None for a value that cannot be decoded.
            namespace: The namespace of its object.
            name: The name of its object.
        """
        if self.object:
            return self.object == name or (action is not None and action.run == self.object)
        if not self.project and (self.run, self.action) == (namespace, name):
            return True
        if action is None:
            return bool(self.action) and task_action_name(self.run, self.action) == name
        return (
            self.project in ("", action.project)
            and self.domain in ("", action.domain)
            and self.run == action.run
            and canonical_name(self.run, self.action) in ("", canonical_name(self.run, action.name))
        )

    def of_run(self) -> Name:
        """Its run."""
        return self._replace(action="", object="")


class NameLookup(Protocol):
    """Finds the runs and actions that exist. Both methods raise the errors of a read."""

    async def find(self, name: Name, /) -> Sequence[Name]:
        """The runs and actions that a parsed name can mean; several if it is ambiguous.

        Args:
            name: Empty fields match all. ``object`` alone is the name of a run or of an object.
                ``run`` and ``action`` alone can also be a namespace and an object.
        """

    async def similar(self, name: Name, /) -> Sequence[str]:
        """The existing names among which :func:`nearest` searches.

        Args:
            name: If it has an action, they are RUN/ACTION of its run. Otherwise, or if there is no
                such run, they are the names of runs, and for ``object`` also of objects.
        """


def parse_name(text: str) -> Name:
    """Parse a name without looking it up.

    Raises:
        ConfigError: It has another form.
    """
    parts = text.split("/")
    if not all(parts) or len(parts) > _MOST_PARTS:
        raise ConfigError(f"{quoted(text)} is not an action: {FORMS}")
    match parts:
        case [name]:
            return Name(object=name)
        case [run, action]:
            return Name(run=run, action=action)
        case [project, domain, run]:
            return Name(project, domain, run)
        case [project, domain, run, action]:
            return Name(project, domain, run, action)
        case _:
            org, project, domain, run, action = parts
            return Name(project, domain, run, action, org)


async def find_action(names: NameLookup, text: str) -> Name:
    """The action that a text names; a run names its root.

    Raises:
        ConfigError: It has no known form, or more than one action has the name.
        DecodeError: Its object cannot be decoded.
        NotFound: There is none.
    """
    name = await find_name(names, text)
    if not name.run:
        raise DecodeError(f"{name.path}: {name.reason}")
    return name._replace(action=canonical_name(name.run, name.action or ROOT_ACTION))


async def find_run(names: NameLookup, text: str) -> Name:
    """The run that a text names, or that has the named action; raises as `find_action`."""
    found = await _found(names, text)
    runs = list(dict.fromkeys(each.of_run() for each in found if each.run))
    if not runs:
        raise DecodeError(f"{found[0].path}: {found[0].reason}")
    return _single(runs, text).of_run()


async def find_complete_run(names: NameLookup, text: str) -> Name:
    """The run that a text names, for a change of all of it; raises as `find_action`.

    Raises:
        ConfigError: The name is also, or only, that of an action.
    """
    name = await find_name(names, text)
    if not name.run:
        raise DecodeError(f"{name.path}: {name.reason}")
    if name.action:
        raise ConfigError(
            f"{text} is the action {name.path}, and not a run: {name.run_path} is all of its run"
        )
    return name


async def find_name(names: NameLookup, text: str) -> Name:
    """The run or action that a text names; raises as `find_action`.

    The object of the action may be one that cannot be decoded.
    """
    return _single(await _found(names, text), text)


@asynccontextmanager
async def with_nearest(names: NameLookup, text: str) -> AsyncIterator[None]:
    """Add the nearest names to a NotFound of the body, if no run or action has the name."""
    refusal: NotFound | None = None
    try:
        yield
    except* NotFound as group:
        refusal = first_error(group)
    if refusal is not None:
        raise NotFound(f"{refusal}{await nearest_to_unknown(names, text)}")


async def nearest_to_unknown(names: NameLookup, text: str) -> str:
    """As `nearest`, if there is no run or action of this name; else, or after an error, empty."""
    name = parse_name(text)
    try:
        # The service does not verify a full path.
        known = await names.find(name._replace(project="", domain="", org=""))
    except EtcdActionsError:
        # The caller's message is about another error.
        return ""
    is_known = any(
        name.project in ("", each.project) and name.domain in ("", each.domain) for each in known
    )
    return "" if is_known else await nearest(names, text)


async def nearest(names: NameLookup, text: str) -> str:
    """``: did you mean A, B or C?`` for the message about an unknown name; empty for none."""
    from difflib import get_close_matches  # noqa: PLC0415 (only of a failure)

    name = parse_name(text)
    short = name._replace(project="", domain="", org="")
    near: list[str] = []
    try:
        if name.project:
            # The same name in other projects is the nearest.
            near = [each.path for each in await names.find(short)]
        similar = list(dict.fromkeys(await names.similar(name)))
    except EtcdActionsError:
        # The caller's message is about the unknown name, with or without a suggestion.
        return ""
    tail = name.object or "/".join(filter(None, (name.run, name.action)))
    near += get_close_matches(tail, similar, _MOST_SHOWN, _NEAR)
    near += [each for each in similar if each.startswith(tail) and each not in near]
    near = [each for each in near if each not in (text, tail)]
    if not near:
        return ""
    *first, last = near[:_MOST_SHOWN]
    return f": did you mean {', '.join(first)}{' or ' if first else ''}{last}?"


async def _found(names: NameLookup, text: str) -> Sequence[Name]:
    """The runs and actions that a text names; raises NotFound, with the nearest, for none."""
    name = parse_name(text)
    found = await names.find(name)
    if not found:
        raise NotFound(f"{text}: there is no such run or action{await nearest(names, text)}")
    return [each._replace(org=name.org or each.org) for each in found]


def _single(found: Iterable[Name], text: str) -> Name:
    """The only one of the found names.

    Raises:
        ConfigError: There are several; the message has them.
    """
    candidates = list(found)
    by_path: dict[str, Name] = {}
    for each in candidates:
        by_path.setdefault(each.path, each)
    if len(by_path) < len(candidates):
        # One path in several namespaces.
        by_path = {
            f"{each.namespace}/{each.object or task_action_name(each.run, ROOT_ACTION)}": each
            for each in candidates
        }
        is_ambiguous = "is in several namespaces"
    else:
        is_ambiguous = "is the name of several"
    if len(by_path) == 1:
        return candidates[0]
    shown = ", ".join(list(by_path)[: 2 * _MOST_SHOWN])
    raise ConfigError(f"{text} {is_ambiguous}: give one of {shown}")
