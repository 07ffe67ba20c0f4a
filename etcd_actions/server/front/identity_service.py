"""IdentityService: who the client is."""

from __future__ import annotations

from typing import Final

from flyteidl2.auth import identity_pb2 as pb

from etcd_actions.runs.run_record import ANONYMOUS
from etcd_actions.server.caller import CALLER
from etcd_actions.server.methods import Methods

IDENTITY: Final = "flyteidl2.auth.IdentityService"


class IdentityService:
    """Answers ``flyte whoami``."""

    def add_to(self, methods: Methods) -> None:
        """Add its methods to those that are served."""
        methods.unary(IDENTITY, "UserInfo", pb.UserInfoRequest, pb.UserInfoResponse, self.user_info)

    async def user_info(self, _: pb.UserInfoRequest) -> pb.UserInfoResponse:
        """The subject of the token, and what it may use where that is not everything."""
        caller = CALLER.get()
        subject = caller.subject or ANONYMOUS
        answer = pb.UserInfoResponse(subject=subject, name=subject, preferred_username=subject)
        if caller.projects is not None:
            answer.additional_claims["projects"] = sorted(caller.projects)
        return answer
