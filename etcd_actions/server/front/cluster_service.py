"""ClusterService: which address answers for data, logs, images and secrets."""

from __future__ import annotations

from typing import Final

from connectrpc.code import Code
from flyteidl2.cluster import payload_pb2 as pb

from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.methods import Methods

CLUSTER: Final = "flyteidl2.cluster.ClusterService"


class ClusterService:
    """Sends every client back to the port that it asked: there is one."""

    def add_to(self, methods: Methods) -> None:
        """Add its methods to those that are served."""
        methods.unary(
            CLUSTER,
            "SelectCluster",
            pb.SelectClusterRequest,
            pb.SelectClusterResponse,
            self.select_cluster,
        )

    async def select_cluster(self, request: pb.SelectClusterRequest) -> pb.SelectClusterResponse:
        """Name no endpoint, which the SDK reads as the one that it has asked.

        Raises:
            Refusal: Inputs of a trigger are to be uploaded; the SDK then sends them with the
                trigger, whose own answer says that there are no triggers.
        """
        if request.operation == pb.SelectClusterRequest.OPERATION_UPLOAD_TRIGGER:
            raise Refusal(Code.UNIMPLEMENTED, "inputs of triggers are not uploaded: send them")
        return pb.SelectClusterResponse()
