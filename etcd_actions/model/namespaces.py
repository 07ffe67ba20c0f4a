"""The Kubernetes namespace of the actions of a project and domain."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, final

from etcd_actions.errors import InvalidArgument

_PLACEHOLDER: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}|\{(\w+)\}")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PART: Final = re.compile(r"[-a-z0-9]+")
_LONGEST: Final = 63
_FIELDS: Final = {"project": "action_id.run.project", "domain": "action_id.run.domain"}


@final
class NamespaceTemplate:
    """A text with ``{project}`` and ``{domain}``, such as ``{project}-{domain}``.

    Flyte's spelling, ``{{ project }}``, is accepted, too. Flyte's own default was
    ``{project}-{domain}`` before it kept all actions in one namespace. There is no placeholder
    for the organisation, since objects and many requests lack it. Two templates are equal if their
    texts differ in spelling only.

    Raises:
        ValueError: It makes no valid namespaces; the message is the rest of a sentence whose
            subject is the setting.
    """

    def __init__(self, text: str) -> None:
        names: list[str] = []

        def placeholder(match: re.Match[str]) -> str:
            names.append(match[1] or match[2])
            return "{" + names[-1] + "}"

        self._text = _PLACEHOLDER.sub(placeholder, text)
        for name in names:
            if name not in _FIELDS:
                raise ValueError(f"has {{{name}}}: give {{project}} and {{domain}} only")
        if not names:
            raise ValueError("has neither {project} nor {domain}: give one namespace by its name")
        shortest = self._filled(lambda name: "x")
        if not _is_label(shortest):
            raise ValueError(
                f"makes {shortest[:80]!r} of project x and domain x, which is not valid: give "
                "a-z, 0-9 and - besides {project} and {domain}"
            )

    def namespace_of(self, project: str, domain: str) -> str:
        """The namespace of a project's actions in a domain, a DNS-1123 label.

        Two projects may have one: ``a-b`` with domain ``c``, and ``a`` with ``b-c``.

        Raises:
            InvalidArgument: They make no valid namespace; the error names the field.
        """
        parts = {"project": project, "domain": domain}
        made = self._filled(parts.__getitem__)
        if _is_label(made):
            return made
        used = [name for name in parts if "{" + name + "}" in self._text]
        bad = next((name for name in used if not _PART.fullmatch(parts[name])), used[0])
        raise InvalidArgument(
            _FIELDS[bad],
            f"with the template {self} it makes the namespace {made[:80]!r}, which is none: "
            f"give at most {_LONGEST} characters of a-z, 0-9 and - in all, with no - at either end",
        )

    def _filled(self, value: Callable[[str], str]) -> str:
        return _PLACEHOLDER.sub(lambda match: value(match[1] or match[2]), self._text)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"NamespaceTemplate({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamespaceTemplate) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def _is_label(text: str) -> bool:
    return len(text) <= _LONGEST and _LABEL.fullmatch(text) is not None
