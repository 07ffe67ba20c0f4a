"""Small services that the SDK calls around its runs: identity, cluster, images, triggers, apps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from connectrpc.code import Code
from flyteidl2.app import app_payload_pb2, app_service_pb2
from flyteidl2.auth import identity_pb2
from flyteidl2.cluster import payload_pb2 as cluster_pb
from flyteidl2.cluster import service_pb2 as cluster_service_pb2
from flyteidl2.imagebuilder import definition_pb2
from flyteidl2.imagebuilder import payload_pb2 as image_pb
from flyteidl2.imagebuilder import service_pb2 as image_service_pb2
from flyteidl2.trigger import trigger_service_pb2 as trigger_pb

from etcd_actions.errors import InvalidArgument, NotFound
from etcd_actions.runs.run_record import ANONYMOUS
from etcd_actions.server.caller import CALLER
from etcd_actions.server.error_codes import Refusal

_log = structlog.get_logger(__name__)

FindImage = Callable[[str], Awaitable[str | None]]
"""Returns the full name of the image ``NAME:TAG``; None if it has to be built first."""


class IdentityService:
    """Answers ``flyte whoami``."""

    descriptor = identity_pb2.DESCRIPTOR.services_by_name["IdentityService"]

    async def user_info(self, _: identity_pb2.UserInfoRequest) -> identity_pb2.UserInfoResponse:
        """The subject of the token, and its projects if they are limited."""
        caller = CALLER.get()
        subject = caller.subject or ANONYMOUS
        response = identity_pb2.UserInfoResponse(
            subject=subject, name=subject, preferred_username=subject
        )
        if caller.projects is not None:
            response.additional_claims["projects"] = sorted(caller.projects)
        return response


class ClusterService:
    """Directs every client to the port that it called: there is one cluster."""

    descriptor = cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"]

    async def select_cluster(
        self, request: cluster_pb.SelectClusterRequest
    ) -> cluster_pb.SelectClusterResponse:
        """Return no endpoint: the SDK then uses the one that it called.

        Raises:
            Refusal: For inputs of a trigger. The SDK then sends them with the trigger, which is
                refused, since there are no triggers.
        """
        if request.operation == cluster_pb.SelectClusterRequest.OPERATION_UPLOAD_TRIGGER:
            raise Refusal(Code.UNIMPLEMENTED, "inputs of triggers are not uploaded: send them")
        return cluster_pb.SelectClusterResponse()


class ImageService:
    """Answers the builder ``remote`` of the SDK.

    If the SDK gets no name for an image, it requests a build. It uses any name unchanged as the
    image of the task's container. The tag is a digest of the image's layers.

    Args:
        find: See :data:`FindImage`; None if every image exists under its own name.
    """

    descriptor = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"]

    def __init__(self, find: FindImage | None = None) -> None:
        self._find = find
        self._has_warned = False

    async def get_image(self, request: image_pb.GetImageRequest) -> image_pb.GetImageResponse:
        """The full name of an image.

        Raises:
            InvalidArgument: The request names none.
            NotFound: The image has to be built.
        """
        name = request.id.name
        if not name:
            raise InvalidArgument("id.name", "it is empty: name an image, such as NAME:TAG")
        if self._find is None and not self._has_warned:
            # A task whose packages are missing can fail only at their import.
            self._has_warned = True
            _log.warning(
                "images_not_built",
                image=name,
                remedy="run --executor local or ray, without --images off, for packages of images",
            )
        full = name if self._find is None else await self._find(name)
        if full is None:
            raise NotFound(f"image {name!r} is not built yet")
        return image_pb.GetImageResponse(image=definition_pb2.Image(id=request.id, fqin=full))


class TriggerService:
    """Lists no triggers; methods that create one are refused."""

    descriptor = trigger_pb.DESCRIPTOR.services_by_name["TriggerService"]

    async def list_triggers(
        self, _: trigger_pb.ListTriggersRequest
    ) -> trigger_pb.ListTriggersResponse:
        """No triggers."""
        return trigger_pb.ListTriggersResponse()

    async def get_trigger_details(
        self, request: trigger_pb.GetTriggerDetailsRequest
    ) -> trigger_pb.GetTriggerDetailsResponse:
        """No trigger has any name: always raises NotFound."""
        raise NotFound(f"trigger {request.name.name!r}: there are no triggers here")


class AppService:
    """Lists no apps, for the SDK's terminal interface; methods that deploy one are refused."""

    descriptor = app_service_pb2.DESCRIPTOR.services_by_name["AppService"]

    async def list(self, _: app_payload_pb2.ListRequest) -> app_payload_pb2.ListResponse:
        """No apps."""
        return app_payload_pb2.ListResponse()
