"""``etcd-actions get``: stored objects, unchanged or with their fields for a person."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence

import msgspec

from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.row_formats import formatter
from etcd_actions.cli.formats.rows import ActionRow, as_text, stored_row
from etcd_actions.cli.formats.standard_output import chosen_format, standard_output
from etcd_actions.cli.formats.yaml import as_yaml
from etcd_actions.cli.names import Name, find_action, find_name, nearest, parse_name
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.stored_objects import open_stored_objects
from etcd_actions.codecs import codec_of
from etcd_actions.codecs import json as json_codec
from etcd_actions.errors import DecodeError, NotFound
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import parse_key


class StoredObject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An object with etcd's metadata: the JSON output.

    ``object`` is the stored JSON except for white space; with another codec, the same object as
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


async def get_actions(
    common: CommonOptions,
    actions: Sequence[str],
    output: str | None = None,
    watch: bool = False,
) -> int:
    """Print actions, all at one revision; see :mod:`etcd_actions.cli.names` for their names.

    With ``watch`` it then prints each change of them, until a signal.
    """
    form = chosen_format(output, elsewhere="json")
    for text in actions:
        parse_name(text)
    if watch:
        return await _watch(common, actions, "jsonl" if output is None and form == "json" else form)
    found: list[KeyValue] = []
    missing: list[str] = []
    async with open_stored_objects(common) as stored:
        for text in actions:
            try:
                kv = await stored.object(await find_name(stored.names, text))
            except NotFound as error:
                missing.append(str(error))
                continue
            if kv is None:
                # The service does not verify a full path, and an expired run has only a record.
                more = await nearest(stored.names, text)
                missing.append(f"{text}: it has no object{more}")
            else:
                found.append(kv)
        revision, prefix = stored.revision, stored.prefix
    with standard_output() as write:
        if form == "details":
            from etcd_actions.cli.formats.details_text import details_text  # noqa: PLC0415 (rich is slow)

            write(details_text(prefix, found, sys.stdout))
        elif form in ("table", "wide", "name"):
            write(formatter(form).format([stored_row(prefix, kv) for kv in found]))
        else:
            objects = [_stored_object(prefix, kv, revision) for kv in found]
            if form == "jsonl":
                write(b"".join(_formatted(each, -1) for each in objects))
            elif form == "yaml" and objects:
                write(as_yaml(objects if len(actions) > 1 else objects[0]))
            elif len(actions) > 1:
                write(_formatted(objects, 2))
            elif objects:
                write(_formatted(objects[0], 2))
    for message in missing:
        print_message(message)
    return ExitCode.NOT_FOUND if missing else ExitCode.OK


async def _watch(common: CommonOptions, actions: Sequence[str], form: str) -> int:
    from etcd_actions.cli.commands.watch import watch_selected  # noqa: PLC0415 (slow to import)

    async with open_stored_objects(common) as stored:
        names = [await find_action(stored.names, text) for text in actions]
    paths = {name.path for name in names}
    runs = {name.of_run() for name in names}
    return await watch_selected(
        common,
        form,
        lambda row: isinstance(row, ActionRow) and row.path in paths,
        runs.pop() if len(runs) == 1 else Name(),
    )


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
    """A document as JSON on one line (``indent`` -1) or on many, whatever white space it has."""
    return msgspec.json.format(msgspec.json.encode(document), indent=indent) + b"\n"
