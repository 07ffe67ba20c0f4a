"""Verifies tokens of an external OpenID Connect issuer, and caches its keys."""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import structlog
import trio
from connectrpc.code import Code
from flyteidl2.auth import auth_service_pb2 as pb

from etcd_actions._internal.no_redirects import open_without_redirects
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.service_settings import OidcSettings
from etcd_actions.server.tokens import Identity

# The type of key (kty) of each accepted algorithm. Only asymmetric ones: with a shared secret each
# verifier could sign.
_KEY_TYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    "EdDSA": "OKP",
}
_DISCOVERY = "/.well-known/openid-configuration"
# The most bytes of a document, characters of a token, and keys of the issuer.
_MOST_BYTES = 1024 * 1024
_MOST_TOKEN = 16 * 1024
_MOST_KEYS = 100
# Seconds that the issuer's clock may differ from this one.
_LEEWAY = 30

_REASONS: Final[tuple[tuple[type[jwt.PyJWTError], str], ...]] = (
    (jwt.ExpiredSignatureError, "it has expired"),
    (jwt.ImmatureSignatureError, "it is not valid yet"),
    (jwt.InvalidAudienceError, "it is for another audience"),
    (jwt.InvalidIssuerError, "another issuer made it"),
    (jwt.InvalidSignatureError, "its signature is wrong"),
    (jwt.MissingRequiredClaimError, "a claim is missing"),
)

# The fields of the discovery document that clients of the SDK get.
_METADATA_TEXTS: Final = (
    "issuer",
    "authorization_endpoint",
    "token_endpoint",
    "jwks_uri",
    "device_authorization_endpoint",
)
_METADATA_LISTS: Final = (
    "response_types_supported",
    "scopes_supported",
    "grant_types_supported",
    "code_challenge_methods_supported",
    "token_endpoint_auth_methods_supported",
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheTimes:
    """When the issuer's documents are fetched, and how long they are used. All in seconds.

    Attributes:
        fresh: The age from which on the documents are fetched again.
        stale: The age from which on they are not used any more, if they cannot be fetched.
        retry_interval: The least time between a failed fetch and the next one.
        unknown_key_interval: The least time between a fetch and one for an unknown key. Any client
            can name unknown keys, so this limits the load of the issuer.
        timeout: The most time of one fetch.
    """

    fresh: float = 600.0
    stale: float = 3600.0
    retry_interval: float = 10.0
    unknown_key_interval: float = 3.0
    timeout: float = 10.0


@dataclass(frozen=True, kw_only=True)
class _IssuerDocuments:
    """The discovery document and the keys of an issuer, and when they were fetched."""

    at: float
    document: Mapping[str, Any]
    keys: Sequence[Mapping[str, Any]]

    def candidates(self, algorithm: str, kid: object) -> Iterable[Mapping[str, Any]]:
        """The keys that may have signed a token, by its header."""
        return (
            key
            for key in self.keys
            if key.get("kty") == _KEY_TYPES[algorithm]
            and key.get("use", "sig") == "sig"
            and key.get("alg", algorithm) == algorithm
            and (kid is None or key.get("kid") == kid)
        )


class OidcIssuer:
    """Verifies an issuer's tokens, and returns the addresses at which clients get them.

    It fetches the keys when they are first needed, when they are old, and when a token has an
    unknown key, so the issuer may rotate them. If a fetch fails, the last keys are used until they
    are stale, an hour after they were fetched. From then on every token is refused.

    Args:
        settings: See :class:`OidcSettings`.
        times: See :class:`CacheTimes`.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        settings: OidcSettings,
        times: CacheTimes = CacheTimes(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._times = times
        self._clock = clock
        self._lock = trio.Lock()
        self._limiter = trio.CapacityLimiter(2)
        self._fetched: _IssuerDocuments | None = None
        self._tried_at = -math.inf
        self._failure = ""

    async def identify(self, token: str) -> Identity:
        """Return the identity of a token; this may fetch the issuer's keys.

        Raises:
            Refusal: UNAUTHENTICATED if the token is not accepted; UNAVAILABLE if the keys cannot
                be fetched.
        """
        if len(token) > _MOST_TOKEN:
            raise _refused("it is too long")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise _refused("it is not a JWT") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in _KEY_TYPES:
            raise _refused("its algorithm is not accepted: sign with a private key")
        fetched = await self._current()
        if not any(fetched.candidates(algorithm, kid)):
            fetched = await self._current(newer_than=fetched)
        return self._identity(self._claims(token, algorithm, kid, fetched))

    async def metadata(self) -> pb.GetOAuth2MetadataResponse:
        """The addresses at which clients request tokens of the issuer.

        Raises:
            Refusal: UNAVAILABLE if the discovery document cannot be fetched.
        """
        document = (await self._current()).document
        texts = {name: _text(document, name) for name in _METADATA_TEXTS}
        lists = {name: _texts(document, name) for name in _METADATA_LISTS}
        return pb.GetOAuth2MetadataResponse(**texts, **lists)

    def client_config(self) -> pb.GetPublicClientConfigResponse:
        """The settings by which a client without a secret requests tokens."""
        return pb.GetPublicClientConfigResponse(
            client_id=self._settings.client_id,
            redirect_uri=self._settings.redirect_uri,
            scopes=self._settings.scopes,
            audience=self._settings.audience,
            authorization_metadata_key="authorization",
        )

    def _claims(
        self, token: str, algorithm: str, kid: object, fetched: _IssuerDocuments
    ) -> Mapping[str, Any]:
        reason = "its key is none of the issuer's"
        for key in fetched.candidates(algorithm, kid):
            try:
                return jwt.decode(
                    token,
                    jwt.PyJWK(dict(key), algorithm=algorithm),
                    algorithms=[algorithm],
                    audience=self._settings.audience,
                    issuer=fetched.document["issuer"],
                    leeway=_LEEWAY,
                    options={"require": ["exp", "iss", "aud"]},
                )
            except jwt.PyJWTError as error:
                reason = next(
                    (r for kind, r in _REASONS if isinstance(error, kind)), "it is broken"
                )
            except (ValueError, TypeError, KeyError) as error:
                # An unreadable key of the issuer is ignored.
                _log.warning("oidc_key_unusable", kid=str(key.get("kid")), error=str(error))
        raise _refused(reason)

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject = claims.get(self._settings.subject_claim)
        if not isinstance(subject, str) or not subject:
            raise _refused(f"its claim {self._settings.subject_claim!r} is not a valid name")
        projects = None
        if name := self._settings.projects_claim:
            value = claims.get(name)
            if isinstance(value, str):
                value = value.replace(",", " ").split()
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise _refused(f"its claim {name!r} is not a list of projects")
            projects = frozenset(value)
        return Identity(client=f"subject {subject}", subject=subject, projects=projects)

    async def _current(self, newer_than: _IssuerDocuments | None = None) -> _IssuerDocuments:
        """The documents of the issuer, fetched if necessary.

        Args:
            newer_than: Documents that lack the needed key; they are returned again if no newer
                ones may or can be fetched.

        Raises:
            Refusal: UNAVAILABLE if there are none, or they are stale.
        """
        fetched = self._fetched
        if fetched is not None and newer_than is None:
            age = self._clock() - fetched.at
            # During a fetch other calls use the documents as long as they are valid.
            if age < (self._times.stale if self._lock.locked() else self._times.fresh):
                await trio.lowlevel.checkpoint()
                return fetched
        async with self._lock:
            now = self._clock()
            fetched = self._fetched
            is_old = fetched is None or now - fetched.at >= self._times.fresh
            needs_newer = newer_than is not None and fetched is newer_than
            pause = self._times.retry_interval
            if needs_newer and not self._failure:
                pause = self._times.unknown_key_interval
            if (is_old or needs_newer) and now - self._tried_at >= pause:
                await self._fetch_again(now)
                fetched = self._fetched
            if fetched is None or self._clock() - fetched.at >= self._times.stale:
                raise Refusal(
                    Code.UNAVAILABLE,
                    f"tokens cannot be verified now: {self._settings.issuer}: {self._failure}",
                )
            return fetched

    async def _fetch_again(self, now: float) -> None:
        """Fetch the documents; after a failure, whose reason is stored, the last ones stay."""
        self._tried_at = now
        self._failure = "a fetch is in progress, or was cancelled"
        with trio.move_on_after(self._times.timeout) as scope:
            try:
                self._fetched = await trio.to_thread.run_sync(
                    self._fetch, now, abandon_on_cancel=True, limiter=self._limiter
                )
                self._failure = ""
            except (OSError, HTTPException, ValueError) as error:
                self._failure = str(error) or type(error).__name__
        if scope.cancelled_caught:
            self._failure = f"no answer within {self._times.timeout:g} s"
        if self._failure:
            _log.warning("oidc_issuer_unusable", issuer=self._settings.issuer, error=self._failure)

    def _fetch(self, now: float) -> _IssuerDocuments:
        """Fetch the documents, in a thread.

        Raises:
            OSError: The issuer is not reached.
            HTTPException: Its response is not HTTP.
            ValueError: A document is unusable.
        """
        issuer = self._settings.issuer
        document = _get(issuer.rstrip("/") + _DISCOVERY, self._times.timeout)
        if _text(document, "issuer").rstrip("/") != issuer.rstrip("/"):
            raise ValueError(f"its discovery document is of {_text(document, 'issuer')!r}")
        url = _text(document, "jwks_uri")
        if not _is_safe(url, issuer):
            raise ValueError("its jwks_uri is not an https:// URL")
        keys = _get(url, self._times.timeout).get("keys")
        if not isinstance(keys, list) or len(keys) > _MOST_KEYS:
            raise ValueError("its jwks_uri gives no list of keys")
        usable = [key for key in keys if isinstance(key, dict)]
        return _IssuerDocuments(at=now, document=document, keys=usable)


def _get(url: str, timeout: float) -> Mapping[str, Any]:
    """Get a JSON object."""
    request = urllib.request.Request(url, headers={"accept": "application/json"})
    try:
        with open_without_redirects(request, timeout) as response:
            data: bytes = response.read(_MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(f"{url} answers {error.code}") from None
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{url} gives more than {_MOST_BYTES} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(f"{url} gives no JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{url} gives no JSON object")  # noqa: TRY004 (a value from outside)
    return value


def _is_safe(url: str, issuer: str) -> bool:
    """Whether a response from there cannot be changed on the way."""
    return url.startswith("https://") or (
        issuer.startswith("http://")
        and url.startswith("http://")
        and urlsplit(url).hostname == urlsplit(issuer).hostname
    )


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    return value if isinstance(value, str) else ""


def _texts(document: Mapping[str, Any], name: str) -> list[str]:
    value = document.get(name)
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _refused(reason: str) -> Refusal:
    return Refusal(Code.UNAUTHENTICATED, f"the token is not accepted: {reason}")
