"""Flyte's DataProxyService, without logs: uploads, inputs and outputs, links."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from flyteidl2.dataproxy import dataproxy_service_pb2 as pb
from flyteidl2.task.common_pb2 import Inputs, NamedLiteral, Outputs
from google.protobuf.message import DecodeError as NoMessage
from google.protobuf.message import Message

from etcd_actions._internal.quoting import quoted
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.blobs import BlobStore, Deployment, Grant, UrlSigner, check_key, check_part
from etcd_actions.blobs.upload_keys import trash_key
from etcd_actions.client import ActionsClient
from etcd_actions.errors import FailedPrecondition, InvalidArgument, NotFound
from etcd_actions.model import ROOT_ACTION, SUCCESSES, ActionId, flyte
from etcd_actions.runs.creation import FindTask
from etcd_actions.server.caller import CALLER
from etcd_actions.server.data_locations import DataLocations
from etcd_actions.server.front.local_files import LocalFiles
from etcd_actions.server.front.run_data import RunBlobs
from etcd_actions.server.front.transfers import LOCAL, STORED, Transfers

if TYPE_CHECKING:
    from flyteidl2.common.identifier_pb2 import ActionIdentifier
    from google.protobuf.duration_pb2 import Duration

_M = TypeVar("_M", bound=Message)

_MOST_READ: Final = 32 << 20
"""Bytes of inputs, or outputs, that a response contains."""
# The most inputs and outputs that are read at a time.
_READERS: Final = 8
_LINK_SECONDS: Final = 3600
"""Seconds that a URL is valid if the request names no time."""
_LONGEST: Final = 7 * 24 * 3600
"""Seconds that a URL is valid, at most."""
_MD5_BYTES: Final = 16


class DataProxy:
    """Implements DataProxyService, except for its methods about logs.

    Args:
        client: Reads actions.
        store: The blob store.
        local: Reads other files of this machine; None if tasks run elsewhere.
        signer: Decides when a signed URL expires.
        transfers: Serves and makes the URLs.
        most: Bytes of an upload, at most.
        deployment: The deployment that owns the uploads.
        find_task: See :data:`~etcd_actions.runs.creation.FindTask`; None if there are no deployed
            tasks.
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
        self._locations = DataLocations(store)
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
        """Return a URL for an upload, and the location of the uploaded file.

        Files of equal content and name are one blob of a project and domain. With
        ``filename_root`` the location is below that, and accepts one content.
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
                f"{length} bytes: give from 1 to {self._most} (--max-upload-bytes)",
            )
        key = await self._upload_key(request)
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

    async def _upload_key(self, request: pb.CreateUploadLocationRequest) -> str:
        """The key of an upload in the store; raises InvalidArgument for an unusable part."""
        content = request.content_md5.hex() or secrets.token_hex(_MD5_BYTES)
        name = check_part(request.filename or content, "filename")
        project = check_part(request.project, "project")
        prefix = f"uploads/{project}/{check_part(request.domain, 'domain')}"
        prefix = f"{prefix}/{await self._deployment.name()}"
        if request.filename_root:
            root = request.filename_root.strip("/")
            check_key(root, "filename_root")
            key = f"{prefix}/named/{root}/{name}"
        else:
            key = f"{prefix}/content/{content}/{name}"
        # The collector moves a blob before it deletes it: that key must be possible, too.
        check_key(trash_key("0" * 16, 0, key), "filename_root and filename")
        return key

    async def upload_inputs(self, request: pb.UploadInputsRequest) -> pb.UploadInputsResponse:
        """Store the inputs of a run to be created, and return their location.

        They are in the blob store; ``base_dir`` is ignored.
        """
        which = request.WhichOneof("id")
        if which is None:
            raise InvalidArgument("run_id", "there is none, and no project_id: give one of them")
        owner = getattr(request, which)
        name = "project" if which == "run_id" else "name"
        project = check_part(getattr(owner, name), f"{which}.{name}")
        domain = check_part(owner.domain, f"{which}.domain")
        spec = request.task_spec
        if request.WhichOneof("task") == "task_id" and self._find_task is not None:
            spec = await self._find_task(request.task_id)
        blobs = RunBlobs(self._store, self._deployment)
        tag = secrets.token_hex(16)
        stored = await blobs.upload(project, domain, tag, request.inputs, spec)
        return pb.UploadInputsResponse(offloaded_input_data=stored)

    async def create_download_link(
        self, request: pb.CreateDownloadLinkRequest
    ) -> pb.CreateDownloadLinkResponse:
        """A URL of the report of an attempt, or of the code of an action or a deployed task.

        Without a report the response has no URL.
        """
        seconds = _seconds(request.expires_in, "expires_in")
        if request.artifact_type == pb.ARTIFACT_TYPE_REPORT:
            if request.WhichOneof("source") != "action_attempt_id":
                raise InvalidArgument("source", "a report is of an action: give action_attempt_id")
            action = await self._attempted_action(request)
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
        """Inputs and outputs of an action with their URIs; outputs only after success."""
        action = await self._action(request.action_id, "action_id")
        response = pb.GetActionDataResponse(inputs_uri=action.spec.input_uri)
        if action.spec.input_uri:
            response.inputs.CopyFrom(await self._message(action.spec.input_uri, Inputs, "inputs"))
        if action.spec.is_condition:
            if (value := flyte.signal_value(action)) is not None:
                response.outputs.literals.append(NamedLiteral(name="o0", value=value))
            return response
        if action.phase not in SUCCESSES:
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

    async def _attempted_action(self, request: pb.CreateDownloadLinkRequest) -> StoredAction:
        field = "action_attempt_id.action_id"
        return await self._action(request.action_attempt_id.action_id, field)

    async def _action(self, identifier: ActionIdentifier, field: str) -> StoredAction:
        run = identifier.run
        for part, text in (
            ("run.project", run.project),
            ("run.domain", run.domain),
            ("run.name", run.name),
            ("name", identifier.name),
        ):
            check_part(text, f"{field}.{part}")
        # The SDK derives the organisation from the name of the host: any is accepted.
        return await self._client.get_task_action(
            ActionId(run.project, run.domain, run.name, identifier.name or ROOT_ACTION)
        )

    async def _bundle(self, request: pb.CreateDownloadLinkRequest) -> str:
        """The location of the code, from the arguments of the container."""
        which = request.WhichOneof("source")
        if which == "action_attempt_id":
            template = flyte.task_template(await self._attempted_action(request))
        elif which == "task_id" and self._find_task is not None:
            template = (await self._find_task(request.task_id)).task_template
        else:
            raise InvalidArgument("source", f"the code of {which or 'nothing'} is unknown")
        arguments = list(template.container.args) if template is not None else []
        for name in ("--tgz", "--pkl"):
            if name in arguments[:-1]:
                return str(arguments[arguments.index(name) + 1])
        raise NotFound("the action has no code bundle: its code is in its image")

    async def _link(self, url: str, seconds: int) -> str | None:
        """A URL for any client that has it; None if there is no such file."""
        path = self._path(url)
        if path.startswith(STORED):
            key = path.removeprefix(STORED)
            if await self._store.stat(key) is None:
                return None
            if (signed := await self._store.signed_url("GET", key, expires_in=seconds)) is not None:
                return signed
        else:
            async with self._transfers.open(path) as blob:
                if blob is None:
                    return None
        grant = Grant(method="GET", path=path, expires=self._signer.expiry(seconds))
        return await self._transfers.url(CALLER.get().origin, grant)

    def _path(self, url: str) -> str:
        """The path of a task's URL at the transfers.

        The URL is checked: a client chose it when it enqueued the action.
        """
        self._locations.check(url)
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
        path = self._path(url)
        # Few at once: each may be large.
        async with self._readers:
            async with self._transfers.open(path) as blob:
                if blob is None:
                    # Without the URL: the SDK searches the message for the word "inputs".
                    raise NotFound(f"the {what} of the action do not exist: their file was deleted")
                if blob.info.size > _MOST_READ:
                    raise FailedPrecondition(
                        f"the {what} have {blob.info.size} bytes, and a response has {_MOST_READ} "
                        f"at most: read {quoted(url, 300)}"
                    )
                data = b"".join([part async for part in blob.parts])
            try:
                return await trio.to_thread.run_sync(kind.FromString, data)
            except NoMessage:
                raise FailedPrecondition(
                    f"the file {quoted(url, 300)} is not a message {kind.DESCRIPTOR.full_name}"
                ) from None


def _seconds(duration: Duration, field: str) -> int:
    seconds: int = duration.seconds
    if seconds == duration.nanos == 0:
        return _LINK_SECONDS
    if not 0 < seconds <= _LONGEST:
        raise InvalidArgument(field, f"{seconds} s: give from 1 s to {_LONGEST} s")
    return seconds


def _below(directory: str, name: str) -> str:
    """A file in a directory of outputs; for a trace the directory may be the file itself."""
    if not directory or directory.endswith(f"/{name}"):
        return directory
    return f"{directory.rstrip('/')}/{name}"


def _has_outputs(action: StoredAction) -> bool:
    template = flyte.task_template(action)
    return template is None or bool(template.interface.outputs.variables)
