"""Flyte's DataProxyService, without logs: uploads, inputs and outputs, links."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from flyteidl2.common import run_pb2
from flyteidl2.dataproxy import dataproxy_service_pb2 as pb
from flyteidl2.task.common_pb2 import Inputs, NamedLiteral, Outputs
from google.protobuf.message import DecodeError as NoMessage
from google.protobuf.message import Message

from etcd_actions._internal.quoting import quoted
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.blobs import BlobStore, Deployment, Grant, UrlSigner, check_key, check_part
from etcd_actions.blobs.uploads import trash_key
from etcd_actions.client import ActionsClient
from etcd_actions.errors import FailedPrecondition, InvalidArgument, NotFound
from etcd_actions.model import ROOT_ACTION, ActionId, Phase, flyte
from etcd_actions.server.caller import CALLER
from etcd_actions.server.data_locations import Places
from etcd_actions.server.front.inputs_hash import inputs_hash
from etcd_actions.server.front.local_files import LocalFiles
from etcd_actions.server.front.transfers import LOCAL, STORED, Transfers

if TYPE_CHECKING:
    from flyteidl2.common.identifier_pb2 import ActionIdentifier
    from flyteidl2.task.task_definition_pb2 import TaskIdentifier, TaskSpec
    from google.protobuf.duration_pb2 import Duration

FindTask = Callable[["TaskIdentifier"], Awaitable["TaskSpec"]]
"""Finds a deployed task; raises NotFound."""

_M = TypeVar("_M", bound=Message)

_MOST_READ: Final = 32 << 20
"""Bytes of inputs, or outputs, that are answered as messages."""
_READERS: Final = 8
_LINK_SECONDS: Final = 3600
_LONGEST: Final = 7 * 24 * 3600
"""Seconds that a URL is good, at most."""
_MD5_BYTES: Final = 16
_PART_SECONDS: Final = 60.0


class DataProxy:
    """The methods.

    Args:
        client: Reads actions.
        store: Where blobs are.
        local: Reads other files of this machine; None where tasks run elsewhere.
        signer: Says when what is signed expires.
        transfers: Makes the URLs.
        most: Bytes of an upload, at most.
        deployment: Whose uploads they are.
        find_task: Finds deployed tasks; None where there are none.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["DataProxyService"]

    def __init__(
        self,
        client: ActionsClient,
        store: BlobStore,
        local: LocalFiles | None,
        signer: UrlSigner,
        transfers: Transfers,
        *,
        most: int,
        deployment: Deployment,
        find_task: FindTask | None = None,
    ) -> None:
        self._client = client
        self._store = store
        self._places = Places(store)
        self._local = local
        self._signer = signer
        self._transfers = transfers
        self._most = most
        self._deployment = deployment
        self._find_task = find_task
        self._readers = trio.CapacityLimiter(_READERS)

    async def create_upload_location(
        self, request: pb.CreateUploadLocationRequest
    ) -> pb.CreateUploadLocationResponse:
        """Where a file may be put, and where it is found afterwards.

        Of equal content and name there is one blob for a project and domain. With
        ``filename_root`` the place is that one's, and takes one content.
        """
        md5 = request.content_md5
        if md5 and len(md5) != _MD5_BYTES:
            raise InvalidArgument(
                "content_md5", f"it has {len(md5)} bytes: a digest of MD5 has {_MD5_BYTES}"
            )
        length = request.content_length or None
        if length is not None and not 0 < length <= self._most:
            raise InvalidArgument(
                "content_length",
                f"{length} bytes: from 1 to {self._most} are taken (--max-upload-bytes)",
            )
        content = md5.hex() or secrets.token_hex(_MD5_BYTES)
        name = check_part(request.filename or content, "filename")
        place = _project("uploads", request.project, request.domain)
        place = f"{place}/{await self._deployment.name()}"
        if request.filename_root:
            root = request.filename_root.strip("/")
            check_key(root, "filename_root")
            key = f"{place}/named/{root}/{name}"
        else:
            key = f"{place}/content/{content}/{name}"
        # Before it is collected it is moved, so the other key has to be possible, too.
        check_key(trash_key("0" * 16, 0, key), "filename_root and filename")
        seconds = _seconds(request.expires_in, "expires_in")
        expires = self._signer.expiry(seconds)
        url = await self._store.signed_url("PUT", key, expires_in=seconds, md5=md5)
        if url is None:
            grant = Grant(method="PUT", path=STORED + key, expires=expires, length=length, md5=md5)
            url = await self._transfers.url(CALLER.get().origin, grant)
        response = pb.CreateUploadLocationResponse(
            signed_url=url, native_url=self._store.native_url(key)
        )
        response.expires_at.FromSeconds(expires)
        return response

    async def upload_inputs(self, request: pb.UploadInputsRequest) -> pb.UploadInputsResponse:
        """Keep the inputs of a run that is to be created.

        They are in the store, wherever ``base_dir`` is: the answer says where.
        """
        which = request.WhichOneof("id")
        if which == "run_id":
            place = _project("inputs", request.run_id.project, request.run_id.domain, which)
        elif which == "project_id":
            place = _project("inputs", request.project_id.name, request.project_id.domain, which)
        else:
            raise InvalidArgument("run_id", "there is none, and no project_id: give one of them")
        ignored = await self._ignored_inputs(request)
        data = request.inputs.SerializeToString(deterministic=True)
        key = f"{place}/{await self._deployment.name()}/{secrets.token_hex(16)}/inputs.pb"
        await self._store.put(key, _one(data), most=len(data))
        return pb.UploadInputsResponse(
            offloaded_input_data=run_pb2.OffloadedInputData(
                uri=self._store.native_url(key),
                inputs_hash=inputs_hash(request.inputs.literals, ignored),
            )
        )

    async def create_download_link(
        self, request: pb.CreateDownloadLinkRequest
    ) -> pb.CreateDownloadLinkResponse:
        """A URL of the report of an attempt, or of the code of an action or a deployed task.

        Without a report there is none.
        """
        seconds = _seconds(request.expires_in, "expires_in")
        which = request.WhichOneof("source")
        if request.artifact_type == pb.ARTIFACT_TYPE_REPORT:
            if which != "action_attempt_id":
                raise InvalidArgument("source", "a report is of an action: give action_attempt_id")
            action = await self._action(
                request.action_attempt_id.action_id, "action_attempt_id.action_id"
            )
            attempt = request.action_attempt_id.attempt or action.attempts
            url = _below(action.outputs_of(attempt), "report.html")
        elif request.artifact_type == pb.ARTIFACT_TYPE_CODE_BUNDLE:
            url = await self._bundle(request)
        else:
            raise InvalidArgument("artifact_type", "give a report or a code bundle")
        link = await self._link(url, seconds) if url else None
        response = pb.CreateDownloadLinkResponse()
        if link is None and request.artifact_type == pb.ARTIFACT_TYPE_CODE_BUNDLE:
            raise NotFound(f"there is no code bundle at {quoted(url)}, or no more")
        if link is not None:
            response.pre_signed_urls.signed_url.append(link)
            response.pre_signed_urls.expires_at.FromSeconds(self._signer.expiry(seconds))
        return response

    async def get_action_data(self, request: pb.GetActionDataRequest) -> pb.GetActionDataResponse:
        """Inputs and outputs of an action, and where they are; outputs once it has succeeded."""
        action = await self._action(request.action_id, "action_id")
        response = pb.GetActionDataResponse(inputs_uri=action.spec.input_uri)
        if action.spec.input_uri:
            response.inputs.CopyFrom(await self._message(action.spec.input_uri, Inputs, "inputs"))
        if action.spec.is_condition:
            if (value := flyte.signal_value(action)) is not None:
                response.outputs.literals.append(NamedLiteral(name="o0", value=value))
            return response
        if action.phase not in (Phase.SUCCEEDED, Phase.RECOVERED):
            return response
        url = _below(action.output_uri, "outputs.pb")
        if url:
            response.outputs_uri = url
            try:
                response.outputs.CopyFrom(await self._message(url, Outputs, "outputs"))
            except NotFound:
                if _has_outputs(action):
                    raise
        return response

    async def _action(self, identifier: ActionIdentifier, field: str) -> StoredAction:
        run = identifier.run
        for part, text in (
            ("run.project", run.project),
            ("run.domain", run.domain),
            ("run.name", run.name),
            ("name", identifier.name),
        ):
            check_part(text, f"{field}.{part}")
        # The organisation is what the SDK makes of the name of the host: any will do.
        return await self._client.get_task_action(
            ActionId(run.project, run.domain, run.name, identifier.name or ROOT_ACTION)
        )

    async def _ignored_inputs(self, request: pb.UploadInputsRequest) -> frozenset[str]:
        spec = request.task_spec
        if request.WhichOneof("task") == "task_id" and self._find_task is not None:
            spec = await self._find_task(request.task_id)
        return frozenset(spec.task_template.metadata.cache_ignore_input_vars)

    async def _bundle(self, request: pb.CreateDownloadLinkRequest) -> str:
        """Where the code is, as the arguments of the container say."""
        which = request.WhichOneof("source")
        if which == "action_attempt_id":
            action = await self._action(
                request.action_attempt_id.action_id, "action_attempt_id.action_id"
            )
            template = flyte.task_template(action)
        elif which == "task_id" and self._find_task is not None:
            template = (await self._find_task(request.task_id)).task_template
        else:
            raise InvalidArgument("source", f"nothing is known of the code of {which or 'nothing'}")
        arguments = list(template.container.args) if template is not None else []
        for name in ("--tgz", "--pkl"):
            if name in arguments[:-1]:
                return str(arguments[arguments.index(name) + 1])
        raise NotFound("the action has no code bundle: its code is in its image")

    async def _link(self, url: str, seconds: int) -> str | None:
        """A URL for anybody who has it; None where there is no such file."""
        path = self._place(url)
        if path.startswith(STORED):
            key = path.removeprefix(STORED)
            if await self._store.stat(key) is None:
                return None
            if (signed := await self._store.signed_url("GET", key, expires_in=seconds)) is not None:
                return signed
        else:
            assert self._local is not None
            async with self._local.read(path.removeprefix(LOCAL)) as blob:
                if blob is None:
                    return None
        grant = Grant(method="GET", path=path, expires=self._signer.expiry(seconds))
        return await self._transfers.url(CALLER.get().origin, grant)

    def _place(self, url: str) -> str:
        """A URL of a task's as a path of the transfers.

        What an action says of where its data is, is its client's word.
        """
        self._places.check(url)
        if (key := self._store.key_of(url)) is not None:
            return STORED + key
        if self._local is not None and (path := self._local.path_of(url)) is not None:
            return LOCAL + path
        raise FailedPrecondition(
            f"{quoted(url, 300)} is not in the blob store of this service (--blob-dir), so it is "
            "not read from here: read it where it is"
        )

    async def _message(self, url: str, kind: type[_M], what: str) -> _M:
        """Read a message from a file."""
        path = self._place(url)
        # Few at once: each may be large.
        async with self._readers:
            if path.startswith(STORED):
                opened = self._store.read(path.removeprefix(STORED))
            else:
                assert self._local is not None
                opened = self._local.read(path.removeprefix(LOCAL))
            async with opened as blob:
                if blob is None:
                    # Without the URL: the SDK looks for the word "inputs" in the message.
                    raise NotFound(f"the {what} of the action are no more: their file is gone")
                if blob.info.size > _MOST_READ:
                    raise FailedPrecondition(
                        f"the {what} have {blob.info.size} bytes, and {_MOST_READ} are answered at "
                        f"most: read {quoted(url, 300)}"
                    )
                data = b"".join([part async for part in blob.parts])
            try:
                return await trio.to_thread.run_sync(kind.FromString, data)
            except NoMessage:
                raise FailedPrecondition(
                    f"what is in {quoted(url, 300)} is no {kind.DESCRIPTOR.full_name}"
                ) from None


async def _one(data: bytes) -> AsyncGenerator[bytes]:
    await trio.lowlevel.checkpoint()
    yield data


def _project(kind: str, project: str, domain: str, field: str = "") -> str:
    """What the keys of one kind begin with, of one project and domain."""
    head = f"{field}." if field else ""
    name = "name" if field == "project_id" else "project"
    return "/".join((kind, check_part(project, head + name), check_part(domain, f"{head}domain")))


def _seconds(duration: Duration, field: str) -> int:
    seconds: int = duration.seconds
    if seconds == duration.nanos == 0:
        return _LINK_SECONDS
    if not 0 < seconds <= _LONGEST:
        raise InvalidArgument(field, f"{seconds} s: give from 1 s to {_LONGEST} s")
    return seconds


def _below(directory: str, name: str) -> str:
    """A file in a directory of outputs; of a trace that may be the file itself."""
    if not directory or directory.endswith(f"/{name}"):
        return directory
    return f"{directory.rstrip('/')}/{name}"


def _has_outputs(action: StoredAction) -> bool:
    template = flyte.task_template(action)
    return template is None or bool(template.interface.outputs.variables)
