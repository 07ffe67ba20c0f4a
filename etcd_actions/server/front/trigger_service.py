"""TriggerService: there are no triggers, and a client that wants one is told so."""

from __future__ import annotations

from typing import Final

from flyteidl2.trigger import trigger_service_pb2 as pb

from etcd_actions.errors import NotFound
from etcd_actions.server.methods import Methods

TRIGGER: Final = "flyteidl2.trigger.TriggerService"


class TriggerService:
    """Lists nothing; what would make a trigger is among the methods that are refused."""

    def add_to(self, methods: Methods) -> None:
        """Add its methods to those that are served."""
        methods.unary(
            TRIGGER,
            "ListTriggers",
            pb.ListTriggersRequest,
            pb.ListTriggersResponse,
            self.list_triggers,
        )
        methods.unary(
            TRIGGER,
            "GetTriggerDetails",
            pb.GetTriggerDetailsRequest,
            pb.GetTriggerDetailsResponse,
            self.get_trigger_details,
        )

    async def list_triggers(self, _: pb.ListTriggersRequest) -> pb.ListTriggersResponse:
        """No triggers."""
        return pb.ListTriggersResponse()

    async def get_trigger_details(
        self, request: pb.GetTriggerDetailsRequest
    ) -> pb.GetTriggerDetailsResponse:
        """No trigger has any name.

        Raises:
            NotFound: Always.
        """
        raise NotFound(f"trigger {request.name.name!r}: there are no triggers here")
