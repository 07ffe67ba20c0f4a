"""Tokens of an issuer: which are accepted, and what happens while its keys cannot be had."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Iterator

import pytest
import trio
from connectrpc.code import Code
from cryptography.hazmat.primitives.asymmetric import rsa
from flyteidl2.auth import auth_service_pb2, identity_pb2

from etcd_actions import ActionsClient
from etcd_actions.app.listeners import server_settings
from etcd_actions.config import Config
from etcd_actions.errors import ConfigError
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.oidc import CacheTimes, OidcIssuer
from etcd_actions.server.service_settings import OidcSettings
from tests.cli.test_named_files import of
from tests.server.clients import Failed
from tests.server.conftest import LOOPBACK
from tests.server.front.asking import Asker
from tests.support.oidc_issuer import AUDIENCE, SmallIssuer, small_issuer
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory(jumps=False)

AUTH = "flyteidl2.auth.AuthMetadataService"


@pytest.fixture
def issuer() -> Iterator[SmallIssuer]:
    with small_issuer() as issuer:
        yield issuer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def settings_of(issuer: SmallIssuer, **more: str) -> OidcSettings:
    return OidcSettings(issuer=issuer.url, audience=AUDIENCE, **more)  # type: ignore[arg-type]


async def refused(verifier: OidcIssuer, token: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await verifier.identify(token)
    return caught.value


def by_hand(header: dict[str, str], claims: dict[str, object], secret: bytes | None) -> str:
    """A token that the library refuses to make."""

    def encoded(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    signed = encoded(json.dumps(header).encode()) + b"." + encoded(json.dumps(claims).encode())
    signature = b"" if secret is None else hmac.new(secret, signed, hashlib.sha256).digest()
    return (signed + b"." + encoded(signature)).decode()


async def test_only_tokens_that_the_issuer_signed_for_us_are_accepted(issuer: SmallIssuer) -> None:
    verifier = OidcIssuer(settings_of(issuer))
    assert (await verifier.identify(issuer.token())).subject == "alice"
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "eve", "exp": time.time() + 300}
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    own = {"kid": issuer.kid}
    for token, why in (
        ("", "not a JWT"),
        ("a.b.c", "not a JWT"),
        ("x" * 20_000, "too long"),
        (issuer.token(exp=time.time() - 60), "expired"),
        (issuer.token(exp=None), "claim is missing"),
        (issuer.token(nbf=time.time() + 600), "not valid yet"),
        (issuer.token(aud="another"), "another audience"),
        (issuer.token(aud=None), "claim is missing"),
        (issuer.token(iss="http://elsewhere"), "another issuer"),
        (issuer.token(iss=None), "claim is missing"),
        (issuer.token(sub=None), "'sub' is not a valid name"),
        (issuer.token(key=stranger), "signature is wrong"),
        (issuer.token(headers={"kid": "other"}), "none of the issuer's"),
        (issuer.token().rpartition(".")[0] + ".AAAA", "signature is wrong"),
        (issuer.token().rpartition(".")[0], "not a JWT"),
        (by_hand({"alg": "none"}, claims, None), "algorithm is not accepted"),
        (by_hand({"alg": "none", **own}, claims, None), "algorithm is not accepted"),
        (by_hand({"alg": "HS256", **own}, claims, issuer.public_pem()), "algorithm is not"),
        # Said to be RS256, signed as HS256 by the key that everybody has.
        (by_hand({"alg": "RS256", **own}, claims, issuer.public_pem()), "signature is wrong"),
        (by_hand({"alg": "ES256", **own}, claims, issuer.public_pem()), "none of the issuer's"),
    ):
        refusal = await refused(verifier, token)
        assert refusal.code is Code.UNAUTHENTICATED, token
        assert why in refusal.message, (token, why)


async def test_claims_say_who_and_what(issuer: SmallIssuer) -> None:
    settings = settings_of(issuer, subject_claim="email", projects_claim="groups")
    verifier = OidcIssuer(settings)
    for groups in (["a", "b"], "a b", "a,b"):
        identity = await verifier.identify(issuer.token(email="a@b.c", groups=groups))
        assert (identity.subject, identity.projects) == ("a@b.c", frozenset("ab"))
    for unusable in (None, 3, [1]):
        refusal = await refused(verifier, issuer.token(email="a@b.c", groups=unusable))
        assert "'groups' is not a list" in refusal.message


async def test_the_issuer_changes_its_keys(issuer: SmallIssuer) -> None:
    clock = Clock()
    verifier = OidcIssuer(settings_of(issuer), clock=clock)
    before = issuer.token()
    for _ in range(3):
        await verifier.identify(before)
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]
    issuer.rotate()
    clock.now += CacheTimes().unknown_key_interval
    assert (await verifier.identify(issuer.token())).subject == "alice"
    assert len(issuer.asked) == 4
    # Keys that nobody has do not make it ask again and again, from any client.
    for number in range(3):
        unknown = issuer.token(headers={"kid": f"none-{number}"})
        assert (await refused(verifier, unknown)).code is Code.UNAUTHENTICATED
    assert (await refused(verifier, before)).code is Code.UNAUTHENTICATED
    assert len(issuer.asked) == 4
    clock.now += CacheTimes().unknown_key_interval
    assert (await refused(verifier, before)).code is Code.UNAUTHENTICATED
    assert len(issuer.asked) == 6


async def test_an_issuer_that_fails_is_not_asked_sooner_for_new_keys(issuer: SmallIssuer) -> None:
    clock = Clock()
    verifier = OidcIssuer(settings_of(issuer), clock=clock)
    await verifier.identify(issuer.token())
    issuer.fails = True
    unknown = issuer.token(headers={"kid": "none"})
    asked = [len(issuer.asked)]
    for _ in range(4):
        clock.now += CacheTimes().unknown_key_interval
        assert (await refused(verifier, unknown)).code is Code.UNAUTHENTICATED
        asked.append(len(issuer.asked))
    assert asked == [2, 3, 3, 3, 3]
    clock.now += CacheTimes().retry_interval - 3 * CacheTimes().unknown_key_interval
    assert (await refused(verifier, unknown)).code is Code.UNAUTHENTICATED
    assert len(issuer.asked) == 4


async def test_nobody_with_a_known_key_waits_while_a_new_one_is_asked_for() -> None:
    clock = Clock()
    with small_issuer() as issuer:
        verifier = OidcIssuer(settings_of(issuer), CacheTimes(timeout=120), clock=clock)
        token = issuer.token()
        unknown = issuer.token(headers={"kid": "none"})
        await verifier.identify(token)
        clock.now += CacheTimes().fresh
        issuer.speaks.clear()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, verifier, unknown)
                await eventually(lambda: len(issuer.asked) == 3)
                with trio.fail_after(60):
                    assert (await verifier.identify(token)).subject == "alice"
                assert len(issuer.asked) == 3
                issuer.speaks.set()
        finally:
            issuer.speaks.set()


async def test_while_keys_cannot_be_fetched_the_old_ones_count_for_a_while(
    issuer: SmallIssuer,
) -> None:
    clock = Clock()
    verifier = OidcIssuer(settings_of(issuer), clock=clock)
    token = issuer.token()
    issuer.fails = True
    refusal = await refused(verifier, token)
    assert refusal.code is Code.UNAVAILABLE
    assert "openid-configuration answers 503" in refusal.message
    assert (await refused(verifier, token)).code is Code.UNAVAILABLE
    assert len(issuer.asked) == 1
    issuer.fails = False
    clock.now += CacheTimes().retry_interval
    await verifier.identify(token)
    issuer.fails = True
    clock.now += CacheTimes().stale - 1
    await verifier.identify(token)
    clock.now += CacheTimes().retry_interval
    assert (await refused(verifier, token)).code is Code.UNAVAILABLE
    issuer.fails = False
    clock.now += CacheTimes().retry_interval
    await verifier.identify(token)


async def test_what_the_issuer_says_may_be_unusable(issuer: SmallIssuer) -> None:
    for document, why in (
        ({"issuer": "http://elsewhere"}, "discovery document is of 'http://elsewhere'"),
        ({"jwks_uri": "http://elsewhere/keys"}, "not an https:// URL"),
        ({"jwks_uri": "file:///etc/passwd"}, "not an https:// URL"),
        ({"jwks_uri": f"{issuer.url}/none"}, "answers 404"),
        ({"jwks_uri": f"{issuer.url}/.well-known/openid-configuration"}, "no list of keys"),
        ({"padding": "x" * 1_100_000}, "more than"),
    ):
        issuer.document = dict(document)
        refusal = await refused(OidcIssuer(settings_of(issuer)), issuer.token())
        assert refusal.code is Code.UNAVAILABLE
        assert why in refusal.message


async def test_an_issuer_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = OidcSettings(issuer=url, audience=AUDIENCE)
        verifier = OidcIssuer(settings, CacheTimes(timeout=0.2))
        with small_issuer() as other, trio.fail_after(10):
            refusal = await refused(verifier, other.token())
        assert refusal.code is Code.UNAVAILABLE
        assert "timed out" in refusal.message or "within 0.2 s" in refusal.message


async def test_a_client_learns_where_to_log_in_and_is_let_in(
    client: ActionsClient, issuer: SmallIssuer
) -> None:
    oidc = settings_of(issuer, client_id="public")
    settings = ServerSettings(bind=LOOPBACK, oidc=oidc)
    async with open_actions_server(
        client, settings, front=FrontDoor(client=client, keepalive=30)
    ) as server:
        bare = Asker(server.address)
        metadata = await bare.ask(
            AUTH,
            "GetOAuth2Metadata",
            auth_service_pb2.GetOAuth2MetadataRequest(),
            auth_service_pb2.GetOAuth2MetadataResponse,
        )
        assert metadata.token_endpoint == f"{issuer.url}/token"
        assert metadata.grant_types_supported == ["client_credentials"]
        config = await bare.ask(
            AUTH,
            "GetPublicClientConfig",
            auth_service_pb2.GetPublicClientConfigRequest(),
            auth_service_pb2.GetPublicClientConfigResponse,
        )
        assert (config.client_id, config.audience) == ("public", AUDIENCE)
        who = (
            "flyteidl2.auth.IdentityService",
            "UserInfo",
            identity_pb2.UserInfoRequest(),
            identity_pb2.UserInfoResponse,
        )
        assert (await Asker(server.address, issuer.token()).ask(*who)).subject == "alice"
        for ask in (bare, Asker(server.address, issuer.token(aud="x"))):
            with pytest.raises(Failed) as caught:
                await ask.ask(*who)
            assert caught.value.code == "unauthenticated"


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"oidc_issuer": "https://a.example"}, "--oidc-audience"),
        ({"oidc_audience": "a"}, "--oidc-issuer"),
        ({"oidc_issuer": "http://a.example", "oidc_audience": "a"}, "https://"),
    ],
)
def test_settings_that_cannot_be_are_refused(flags: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        server_settings(Config(of(**flags), None))


def test_settings_make_an_issuer() -> None:
    flags = {"oidc_issuer": "https://a.example/x/", "oidc_audience": "a", "oidc_scopes": "b,c"}
    settings = server_settings(Config(of(**flags), None))
    assert settings is not None
    assert settings.oidc is not None
    assert (settings.oidc.issuer, settings.oidc.scopes) == ("https://a.example/x", ("b", "c"))
    assert settings.is_authenticated
