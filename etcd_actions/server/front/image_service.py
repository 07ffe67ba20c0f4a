"""ImageService: which images there are, so that the SDK knows whether it has to build one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from flyteidl2.imagebuilder import definition_pb2
from flyteidl2.imagebuilder import payload_pb2 as pb

from etcd_actions.errors import InvalidArgument, NotFound
from etcd_actions.server.methods import Methods

IMAGE: Final = "flyteidl2.imagebuilder.ImageService"

FindImage = Callable[[str], Awaitable[str | None]]
"""Gives the full name of an image by ``NAME:TAG``; None for one that has to be built first."""


class ImageService:
    """Answers the builder ``remote`` of the SDK.

    The SDK builds what it gets no name for, and takes any name as it is: it becomes the image of
    the task's container. Its tag is a digest of the image's layers.

    Args:
        find: See :data:`FindImage`; None: every image is there under its own name, and nothing
            is built.
    """

    def __init__(self, find: FindImage | None = None) -> None:
        self._find = find

    def add_to(self, methods: Methods) -> None:
        """Add its methods to those that are served."""
        methods.unary(IMAGE, "GetImage", pb.GetImageRequest, pb.GetImageResponse, self.get_image)

    async def get_image(self, request: pb.GetImageRequest) -> pb.GetImageResponse:
        """The full name of an image.

        Raises:
            InvalidArgument: None is named.
            NotFound: It has to be built.
        """
        name = request.id.name
        if not name:
            raise InvalidArgument("id.name", "it is empty: name an image, such as NAME:TAG")
        full = name if self._find is None else await self._find(name)
        if full is None:
            raise NotFound(f"image {name!r} is not built yet")
        image = definition_pb2.Image(id=request.id, fqin=full)
        return pb.GetImageResponse(image=image)
