"""gRPC server reflection, by which grpcurl gets the services and their messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from etcd_actions.server._pb import POOL
from etcd_actions.server._pb import grpc_reflection_pb2 as pb
from etcd_actions.server.methods import Methods, method_info

REFLECTION: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)

_NOT_FOUND = 5
_UNIMPLEMENTED = 12


class Reflection:
    """Answers in both versions of the protocol: their messages are the same on the wire.

    Args:
        services: Returns the full names of the services.
    """

    def __init__(self, services: Callable[[], Iterable[str]]) -> None:
        self._services = services
        self._pools = (descriptor_pool.Default(), _described())

    def add_to(self, methods: Methods) -> None:
        """Add its methods."""
        (method,) = pb.DESCRIPTOR.services_by_name["ServerReflection"].methods
        for service in REFLECTION:
            methods.add_method(method_info(method, service), self.server_reflection_info)

    async def server_reflection_info(
        self, requests: AsyncIterator[pb.ServerReflectionRequest]
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        """Answer the requests one by one."""
        async for request in requests:
            answer = self._answer(request)
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer

    def _answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        try:
            match request.WhichOneof("message_request"):
                case "list_services":
                    return self._list()
                case "file_by_filename":
                    name = request.file_by_filename
                    return _files(self._find(lambda pool: pool.FindFileByName(name)))
                case "file_containing_symbol":
                    symbol = request.file_containing_symbol
                    return _files(self._find(lambda pool: pool.FindFileContainingSymbol(symbol)))
                case other:
                    return _error(_UNIMPLEMENTED, f"{other} is not supported")
        except KeyError:
            return _error(_NOT_FOUND, "there is no such file or symbol")

    def _find(self, find: Callable[[DescriptorPool], FileDescriptor]) -> FileDescriptor:
        common, ours = self._pools
        try:
            return find(ours)
        except KeyError:
            return find(common)

    def _list(self) -> pb.ServerReflectionResponse:
        services = [pb.ServiceResponse(name=name) for name in self._services()]
        return pb.ServerReflectionResponse(
            list_services_response=pb.ListServiceResponse(service=services)
        )


def _described() -> DescriptorPool:
    """The pool of health and reflection, with reflection's older name added."""
    old = "grpc_reflection_v1alpha.proto"
    try:
        POOL.FindFileByName(old)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        pb.DESCRIPTOR.CopyToProto(file)
        package = "grpc.reflection.v1"
        text = text_format.MessageToString(file).replace(package, f"{package}alpha")
        file = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
        file.name = old
        POOL.Add(file)
    return POOL


def _files(file: FileDescriptor) -> pb.ServerReflectionResponse:
    """A file and all files that it imports."""
    found: dict[str, bytes] = {}

    # The requested file comes first.
    def add(each: FileDescriptor) -> None:
        if each.name not in found:
            found[each.name] = each.serialized_pb
            for imported in each.dependencies:
                add(imported)

    add(file)
    return pb.ServerReflectionResponse(
        file_descriptor_response=pb.FileDescriptorResponse(file_descriptor_proto=found.values())
    )


def _error(code: int, message: str) -> pb.ServerReflectionResponse:
    return pb.ServerReflectionResponse(
        error_response=pb.ErrorResponse(error_code=code, error_message=message)
    )
