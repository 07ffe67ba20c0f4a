"""The unmodified SDK logs in over TLS: by a command that prints a token, and by a secret."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from etcd_actions import ActionsClient
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.service_settings import OidcSettings
from etcd_actions.web import Bind, ServerTls
from tests.sdk.conftest import sdk_python  # noqa: F401
from tests.server.conftest import client  # noqa: F401
from tests.support.oidc_issuer import AUDIENCE, CLIENT, small_issuer

pytestmark = pytest.mark.slow

WHO = """
import json, sys
import flyte, flyte.remote
flyte.init(**json.loads(sys.argv[1]), project="a", domain="development")
print("user:", flyte.remote.User.get().subject())
print("project:", flyte.remote.Project.get(sys.argv[2]).pb2.id)
"""


def tls(directory: Path) -> tuple[ServerTls, str]:
    authority = trustme.CA()
    ca, cert, key = (directory / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return ServerTls(cert=cert, key=key), str(ca)


async def who(
    python: Path, server: ActionsServer, project: str, **settings: Any
) -> subprocess.CompletedProcess[str]:
    scheme = "http" if settings.get("insecure") else "https"
    given = json.dumps({"endpoint": f"{scheme}://{server.address}", **settings})
    return await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [python, "-c", WHO, given, project],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    )


async def test_the_sdk_shows_the_token_that_a_command_prints(
    client: ActionsClient,  # noqa: F811
    sdk_python: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("of-alice name=alice projects=a\n")
    served, ca = tls(tmp_path)
    settings = ServerSettings(bind=Bind("127.0.0.1", 0), token_file=tokens, tls=served)
    by_command = {"auth_type": "ExternalCommand", "ca_cert_file_path": ca}
    async with open_actions_server(
        client, settings, front=FrontDoor(client=client, keepalive=30)
    ) as server:
        right = {**by_command, "command": ["echo", "of-alice"]}
        done = await who(sdk_python, server, "a", **right)
        assert done.stdout == "user: alice\nproject: a\n", done.stderr
        done = await who(sdk_python, server, "b", **right)
        assert done.stdout.startswith("user: alice\n")
        assert "project: b" not in done.stdout
        assert "the token of alice may not use project 'b'" in done.stdout + done.stderr
        done = await who(sdk_python, server, "a", **{**by_command, "command": ["echo", "no"]})
        assert "user: " not in done.stdout
        assert "the token is not accepted" in done.stdout + done.stderr


async def test_a_client_that_is_insecure_is_told_how_to_show_a_token(
    client: ActionsClient,  # noqa: F811
    sdk_python: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("of-alice\n")
    settings = ServerSettings(bind=Bind("127.0.0.1", 0), token_file=tokens)
    async with open_actions_server(
        client, settings, front=FrontDoor(client=client, keepalive=30)
    ) as server:
        done = await who(sdk_python, server, "a", insecure=True)
        assert "user: " not in done.stdout
        assert "auth_type='ExternalCommand'" in done.stdout + done.stderr


async def test_the_sdk_logs_in_by_the_secret_of_a_client(
    client: ActionsClient,  # noqa: F811
    sdk_python: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    served, ca = tls(tmp_path)
    by_secret = {"auth_type": "ClientSecret", "ca_cert_file_path": ca, "client_id": CLIENT[0]}
    with small_issuer() as issuer:
        oidc = OidcSettings(issuer=issuer.url, audience=AUDIENCE)
        settings = ServerSettings(bind=Bind("127.0.0.1", 0), tls=served, oidc=oidc)
        async with open_actions_server(
            client, settings, front=FrontDoor(client=client, keepalive=30)
        ) as server:
            done = await who(
                sdk_python, server, "a", **by_secret, client_credentials_secret=CLIENT[1]
            )
            assert done.stdout == "user: robot\nproject: a\n", done.stderr
            done = await who(sdk_python, server, "a", **by_secret, client_credentials_secret="no")
            assert "user: " not in done.stdout
            assert "invalid_client" in done.stdout + done.stderr
