"""``etcd-actions io``: the inputs and outputs of an action, as values."""

from __future__ import annotations

import json
from typing import Any

from flyteidl2.dataproxy import dataproxy_service_pb2 as pb

from etcd_actions._internal.quoting import printable
from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.calls import DATA
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.formats.literals import plain_values
from etcd_actions.cli.formats.message_rows import phase_of
from etcd_actions.cli.formats.standard_output import chosen_format, standard_output
from etcd_actions.cli.names import find_action, parse_name, with_nearest
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import action_identifier


async def show_data(
    common: CommonOptions, text: str, *, inputs: bool, outputs: bool, output: str | None
) -> int:
    """Print the inputs and outputs of an action; both if none of the flags is set."""
    form = chosen_format(output, elsewhere="json")
    parse_name(text)
    async with open_reader(common, files=True) as reader:
        name = await find_action(reader.names, text)
        async with with_nearest(reader.names, text):
            status = (await reader.action(name)).status
            request = pb.GetActionDataRequest(action_id=action_identifier(name))
            data = await reader.calls.unary(
                DATA, "GetActionData", request, pb.GetActionDataResponse
            )
    phase = phase_of(status.phase)
    document: dict[str, Any] = {"action": name.path, "phase": phase.name}
    if inputs or not outputs:
        document |= {"inputs": plain_values(data.inputs), "inputs_uri": data.inputs_uri}
    if outputs or not inputs:
        has_outputs = data.outputs_uri or data.outputs.literals
        document["outputs"] = plain_values(data.outputs) if has_outputs else None
        document["outputs_uri"] = data.outputs_uri
    with standard_output() as write:
        if form == "json":
            write(json.dumps(document, indent=2).encode() + b"\n")
        else:
            write(_text(document).encode(errors="backslashreplace"))
    return ExitCode.OK


def _text(document: dict[str, Any]) -> str:
    lines = []
    for kind in ("inputs", "outputs"):
        if kind not in document:
            continue
        values, uri = document[kind], document[f"{kind}_uri"]
        if values is None:
            lines.append(f"{kind}: none: the action is {document['phase']}")
            continue
        lines.append(f"{kind}:{'' if values else ' none'}{f'  ({printable(uri)})' if uri else ''}")
        for name, value in values.items():
            shown = json.dumps(value, indent=2, ensure_ascii=False).splitlines()
            lines.append(f"  {printable(name)}: {printable(shown[0])}")
            lines += [f"  {printable(line)}" for line in shown[1:]]
    return "".join(f"{line}\n" for line in lines)
