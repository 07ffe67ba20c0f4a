"""``etcd-actions get``: objects as they are stored, or their fields for a person."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence

import msgspec

from etcd_actions._internal.quoting import quoted
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.rows import as_text
from etcd_actions.cli.formats.standard_output import chosen_format, standard_output
from etcd_actions.cli.keys import find_namespaces
from etcd_actions.cli.options import CommonOptions
from etcd_actions.codecs import codec_of
from etcd_actions.codecs import json as json_codec
from etcd_actions.errors import ConfigError, DecodeError
from etcd_actions.etcd import Etcd
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import ActionId, canonical_name, object_key, parse_key


class StoredObject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An object with etcd's metadata: what ``get`` prints as JSON.

    ``object`` is the stored JSON except for white space; of another codec, the same object as
    JSON. A value that cannot be decoded has ``reason`` and ``value_base64`` instead.
    """

    key: str
    namespace: str
    name: str
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    read_revision: int
    codec: str | None
    object: msgspec.Raw | None = None
    reason: str = ""
    value_base64: str = ""


class Target:
    """The action that an argument names.

    Args:
        text: ``<namespace>/<name>``, an object's name, or ``<project>/<domain>/<run>/<action>``.
        only: The only namespace; None for all.

    Raises:
        ConfigError: It is none of these, or in another namespace.
    """

    def __init__(self, text: str, only: str | None) -> None:
        self.text = text
        self.action: ActionId | None = None
        self.namespace = only
        parts = text.split("/")
        if not all(parts) or len(parts) not in (1, 2, 4):
            raise ConfigError(
                f"{quoted(text)} is no action: give <namespace>/<name>, a name such as <run>-a0, "
                "or <project>/<domain>/<run>/<action>"
            )
        self.name = parts[-1]
        if len(parts) == 4:
            self.action = ActionId(*parts)
            self.name = self.action.object_name
        elif len(parts) == 2:
            if only not in (None, parts[0]):
                raise ConfigError(f"{quoted(text)}: --namespace allows {only} only")
            self.namespace = parts[0]

    def is_action(self, found: ActionId) -> bool:
        """Whether an object of the name is this action: names of objects are not unique."""
        meant = self.action
        return meant is None or (
            (found.project, found.domain, found.run) == (meant.project, meant.domain, meant.run)
            and canonical_name(found.run, found.name) == canonical_name(meant.run, meant.name)
        )

    def fits(self, kv: KeyValue) -> bool:
        """Whether an object of the name is this action; one that cannot be decoded may be."""
        try:
            return self.is_action(codec_of(kv.value).summarize(kv.value).action_id)
        except DecodeError:
            return True


async def get_actions(
    common: CommonOptions, actions: Sequence[str], output: str | None = None
) -> int:
    """Print actions, all at one revision; see `Target` for their names."""
    form = chosen_format(output, elsewhere="json")
    targets = [Target(text, common.namespace) for text in actions]
    found: list[KeyValue] = []
    missing: list[str] = []
    revision = 0
    async with common.open_etcd() as etcd:
        for target in targets:
            kvs, revision = await _find(etcd, common.prefix, target, revision)
            if len(kvs) > 1:
                names = ", ".join("/".join(parse_key(common.prefix, kv.key)) for kv in kvs)
                raise ConfigError(f"{target.text} is in several namespaces: give one of {names}")
            found += kvs
            if not kvs:
                missing.append(target.text)
    with standard_output() as write:
        if form == "table":
            from etcd_actions.cli.formats.details import details  # noqa: PLC0415 (rich is slow)

            write(details(common.prefix, found, sys.stdout))
        else:
            objects = [_stored_object(common.prefix, kv, revision) for kv in found]
            if form == "jsonl":
                write(b"".join(_formatted(each, -1) for each in objects))
            elif len(actions) > 1:
                write(_formatted(objects, 2))
            elif objects:
                write(_formatted(objects[0], 2))
    for text in missing:
        print_message(f"{text}: not found below {as_text(common.prefix)}")
    return ExitCode.NOT_FOUND if missing else ExitCode.OK


async def _find(
    etcd: Etcd, prefix: bytes, target: Target, revision: int
) -> tuple[list[KeyValue], int]:
    """The objects that a target can be, and the revision at which they were read."""
    if target.namespace is not None:
        namespaces: Sequence[str] = [target.namespace]
    else:
        namespaces, newest = await find_namespaces(etcd, prefix, None)
        revision = revision or newest
    found: list[KeyValue] = []
    for namespace in namespaces:
        key = KeyRange.of_key(object_key(prefix, namespace, target.name))
        page = await etcd.range(key, revision=revision)
        revision = revision or page.revision
        found += filter(target.fits, page.kvs)
    return found, revision


def _stored_object(prefix: bytes, kv: KeyValue, revision: int) -> StoredObject:
    codec = codec_of(kv.value)
    raw: msgspec.Raw | None = None
    reason = ""
    try:
        tree = codec.decode_tree(kv.value, key=kv.key, revision=kv.mod_revision)
        as_json = kv.value if codec.name == json_codec.name else json_codec.encode_tree(tree)
        # The output nests it some levels deeper.
        msgspec.json.format(b"[[[%b]]]" % as_json)
        raw = msgspec.Raw(as_json)
    except DecodeError as error:
        reason = error.reason
    except RecursionError:
        reason = "nested too deeply"
    namespace, name = parse_key(prefix, kv.key)
    return StoredObject(
        key=as_text(kv.key),
        namespace=namespace,
        name=name,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
        read_revision=revision,
        codec=None if reason else codec.name,
        object=raw,
        reason=reason,
        value_base64=base64.b64encode(kv.value).decode() if reason else "",
    )


def _formatted(document: object, indent: int) -> bytes:
    """A document on one line (``indent`` -1), or on many; stored JSON has white space."""
    return msgspec.json.format(msgspec.json.encode(document), indent=indent) + b"\n"
