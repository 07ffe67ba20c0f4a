"""Every setting: its flag, its variable, its default, and what it means.

Flags, the reading of the environment, ``config show`` and the table in
``docs/configuration.md`` all follow from here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar, cast

from etcd_actions._internal.secret_sources import SecretSource, parse_secret_sources
from etcd_actions.config import values
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.model import DEFAULT_KEY_PREFIX, DEFAULT_NAMESPACE, NamespaceTemplate
from etcd_actions.web import Bind

T_co = TypeVar("T_co", covariant=True)

CodecName: TypeAlias = Literal["json", "protobuf", "msgpack"]

HIDDEN = "(hidden)"
"""What is shown in place of a secret."""


class Group(enum.Enum):
    """What settings are about; the value is a heading."""

    FILE = "A file with settings"
    ENDPOINTS = "Where etcd is"
    KEYS = "Keys and values"
    TLS = "Encryption"
    USER = "User"
    TIMES = "Times, such as 500ms, 5s or 1m30s"
    EMBEDDED = "The embedded etcd"
    RUN = "The process"
    SERVICE = "The service for Flyte's SDK"
    MONITORING = "Health and metrics"
    EXECUTOR = "The local executor"
    ASKING = "Asking the service instead of etcd"
    LOGS = "Logs, on standard error"


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting(Generic[T_co]):
    """One setting.

    Attributes:
        name: Its name in Python; the flag has dashes.
        group: What it is about.
        variable: The environment variable.
        metavar: What a value looks like, in help.
        parse: Makes a value of a text; raises :class:`ValueError`.
        default: The text that counts where nobody gives one; None for none.
        otherwise: What happens without a value, where there is no default.
        help: What it means, a sentence without its full stop.
        show: Makes the text that may be shown, of the one that was given.
        is_list: Whether the flag may come several times; the texts are joined by commas.
        for_run: Whether only ``run`` has it.
        for_asking: Whether only those commands have it that may ask the service.
    """

    name: str
    group: Group
    variable: str
    metavar: str
    parse: Callable[[str], T_co]
    help: str
    default: str | None = None
    otherwise: str = "none"
    show: Callable[[str], str] = str
    is_list: bool = False
    for_run: bool = False
    for_asking: bool = False

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_bool(self) -> bool:
        """Whether the flag alone means true."""
        return self.metavar == "BOOL"

    @property
    def default_value(self) -> T_co:
        """The value of the default."""
        return cast(T_co, None) if self.default is None else self.parse(self.default)


def without_password(text: str) -> str:
    """``name:password`` with the password hidden."""
    name, _, password = text.partition(":")
    return f"{name}:{HIDDEN}" if password else text


CONFIG: Setting[Path | None] = Setting(
    name="config",
    group=Group.FILE,
    variable="ETCD_ACTIONS_CONFIG",
    metavar="FILE",
    parse=values.file,
    help="A TOML file that has settings by their names, such as endpoints or token_file",
)
ENDPOINTS: Setting[tuple[Endpoint, ...] | None] = Setting(
    name="endpoints",
    group=Group.ENDPOINTS,
    variable="ETCDCTL_ENDPOINTS",
    metavar="HOST:PORT,...",
    parse=values.endpoints,
    otherwise="the embedded etcd",
    is_list=True,
    help="Where etcd's members listen; https:// before a host asks for TLS",
)
_transport: Callable[[str], TransportName] = values.one_of("grpc", "gateway")
TRANSPORT: Setting[TransportName] = Setting(
    name="transport",
    group=Group.ENDPOINTS,
    variable="ETCD_ACTIONS_TRANSPORT",
    metavar="grpc|gateway",
    parse=_transport,
    default="grpc",
    help="gateway is for networks that only HTTP/1.1 passes",
)
PREFIX: Setting[bytes] = Setting(
    name="prefix",
    group=Group.KEYS,
    variable="ETCD_ACTIONS_PREFIX",
    metavar="KEY",
    parse=values.prefix,
    show=lambda text: values.prefix(text).decode(),
    default=DEFAULT_KEY_PREFIX.decode(),
    help="What the keys begin with, before the namespace",
)
NAMESPACE: Setting[str | None] = Setting(
    name="namespace",
    group=Group.KEYS,
    variable="ETCD_ACTIONS_NAMESPACE",
    metavar="NAME",
    parse=values.namespace,
    otherwise="all namespaces",
    help="Only this namespace",
)
NAMESPACE_TEMPLATE: Setting[NamespaceTemplate | None] = Setting(
    name="namespace_template",
    group=Group.KEYS,
    variable="ETCD_ACTIONS_NAMESPACE_TEMPLATE",
    metavar="TEXT",
    parse=values.namespace_template,
    show=lambda text: str(values.namespace_template(text)),
    otherwise=f"one namespace, {DEFAULT_NAMESPACE}, or that of --namespace",
    help="A namespace for each project and domain, such as {project}-{domain}",
)
_codec: Callable[[str], CodecName] = values.one_of("json", "protobuf", "msgpack")
CODEC: Setting[CodecName] = Setting(
    name="codec",
    group=Group.KEYS,
    variable="ETCD_ACTIONS_CODEC",
    metavar="json|protobuf|msgpack",
    parse=_codec,
    default="json",
    help="How objects that are created are stored; Kubernetes reads json only",
)
FINALIZER: Setting[bool] = Setting(
    name="finalizer",
    group=Group.KEYS,
    variable="ETCD_ACTIONS_FINALIZER",
    metavar="BOOL",
    parse=values.boolean,
    default="true",
    help="Whether our finalizer holds what is created until its end is recorded; false where an "
    "API server encrypts actions at rest",
)

CACERT: Setting[Path | None] = Setting(
    name="cacert",
    group=Group.TLS,
    variable="ETCDCTL_CACERT",
    metavar="FILE",
    parse=values.file,
    otherwise="the system's",
    help="The authorities, in PEM, that may vouch for etcd's certificate; asks for TLS",
)
CERT: Setting[Path | None] = Setting(
    name="cert",
    group=Group.TLS,
    variable="ETCDCTL_CERT",
    metavar="FILE",
    parse=values.file,
    help="The client's own certificate, in PEM; asks for TLS",
)
KEY: Setting[Path | None] = Setting(
    name="key",
    group=Group.TLS,
    variable="ETCDCTL_KEY",
    metavar="FILE",
    parse=values.file,
    help="The key of that certificate, in PEM, without a passphrase",
)
TLS_SERVER_NAME: Setting[str | None] = Setting(
    name="tls_server_name",
    group=Group.TLS,
    variable="ETCD_ACTIONS_TLS_SERVER_NAME",
    metavar="NAME",
    parse=values.utf8,
    otherwise="the endpoint's host",
    help="The name that etcd's certificate must hold; asks for TLS",
)
INSECURE_TRANSPORT: Setting[bool] = Setting(
    name="insecure_transport",
    group=Group.TLS,
    variable="ETCDCTL_INSECURE_TRANSPORT",
    metavar="BOOL",
    parse=values.boolean,
    default="true",
    help="false asks for TLS; true asks for nothing, other settings may",
)
INSECURE_SKIP_TLS_VERIFY: Setting[bool] = Setting(
    name="insecure_skip_tls_verify",
    group=Group.TLS,
    variable="ETCDCTL_INSECURE_SKIP_TLS_VERIFY",
    metavar="BOOL",
    parse=values.boolean,
    default="false",
    help="Where TLS is asked for, believe any certificate; for trying out only",
)

USER: Setting[str | None] = Setting(
    name="user",
    group=Group.USER,
    variable="ETCDCTL_USER",
    metavar="NAME[:PASSWORD]",
    parse=values.utf8,
    show=without_password,
    help="Who to be for etcd; the whole is the name where a password is given apart",
)
PASSWORD: Setting[str | None] = Setting(
    name="password",
    group=Group.USER,
    variable="ETCDCTL_PASSWORD",
    metavar="PASSWORD",
    parse=values.utf8,
    show=lambda _: HIDDEN,
    otherwise="a user without one is asked",
    help="The user's password; a file or the variable keeps it from other people's eyes",
)
PASSWORD_FILE: Setting[Path | None] = Setting(
    name="password_file",
    group=Group.USER,
    variable="ETCD_ACTIONS_PASSWORD_FILE",
    metavar="FILE",
    parse=values.file,
    help="Where the password is, read whenever etcd wants it",
)

DIAL_TIMEOUT: Setting[float] = Setting(
    name="dial_timeout",
    group=Group.TIMES,
    variable="ETCDCTL_DIAL_TIMEOUT",
    metavar="DURATION",
    parse=values.positive_duration,
    default="2s",
    help="How long connecting may take",
)
COMMAND_TIMEOUT: Setting[float] = Setting(
    name="command_timeout",
    group=Group.TIMES,
    variable="ETCDCTL_COMMAND_TIMEOUT",
    metavar="DURATION",
    parse=values.positive_duration,
    default="5s",
    help="How long one request to etcd may take",
)
KEEPALIVE_TIME: Setting[float] = Setting(
    name="keepalive_time",
    group=Group.TIMES,
    variable="ETCDCTL_KEEPALIVE_TIME",
    metavar="DURATION",
    parse=values.duration,
    default="10s",
    help="After this silence a connection is asked for life; less than 10s is raised to 10s",
)
KEEPALIVE_TIMEOUT: Setting[float] = Setting(
    name="keepalive_timeout",
    group=Group.TIMES,
    variable="ETCDCTL_KEEPALIVE_TIMEOUT",
    metavar="DURATION",
    parse=values.positive_duration,
    default="3s",
    help="How long the answer to that may take",
)

DATA_DIR: Setting[Path | None] = Setting(
    name="data_dir",
    group=Group.EMBEDDED,
    variable="ETCD_ACTIONS_DATA_DIR",
    metavar="DIRECTORY",
    parse=values.directory,
    otherwise="etcd-actions/default in the user's data directory",
    help="The embedded etcd's directory",
)
EMBEDDED_PORT: Setting[int] = Setting(
    name="embedded_port",
    group=Group.EMBEDDED,
    variable="ETCD_ACTIONS_EMBEDDED_PORT",
    metavar="PORT",
    parse=values.port,
    default="2379",
    help="Where the embedded etcd listens; another port when this one is taken",
    for_run=True,
)

RUN_SERVICE: Setting[Endpoint | None] = Setting(
    name="run_service",
    group=Group.RUN,
    variable="ETCD_ACTIONS_RUN_SERVICE",
    metavar="HOST:PORT",
    parse=values.service,
    otherwise="nobody is told, endings are marked at once",
    help="Flyte's run service, over gRPC; https:// before the host asks for TLS",
    for_run=True,
)
RETAIN_TERMINAL: Setting[float | None] = Setting(
    name="retain_terminal",
    group=Group.RUN,
    variable="ETCD_ACTIONS_RETAIN_TERMINAL",
    metavar="DURATION",
    parse=values.positive_duration,
    otherwise="kept until somebody else deletes them",
    help="How long recorded actions are kept before they expire; what still goes on below one "
    "then is aborted with it",
    for_run=True,
)
RETAIN_RUNS: Setting[float] = Setting(
    name="retain_runs",
    group=Group.RUN,
    variable="ETCD_ACTIONS_RETAIN_RUNS",
    metavar="DURATION",
    parse=values.positive_duration,
    default="720h",
    help="How long a run that is over is kept: its record, histories, actions and data; with "
    "--executor none and --run-service only record and histories are deleted",
    for_run=True,
)
RETAIN_SHARE: Setting[float] = Setting(
    name="retain_share",
    group=Group.RUN,
    variable="ETCD_ACTIONS_RETAIN_SHARE",
    metavar="SHARE",
    parse=values.share,
    default="0.5",
    help="The part of etcd's quota above which the oldest runs that are over are deleted sooner; "
    "0 for none",
    for_run=True,
)
RETAIN_UPLOADS: Setting[float] = Setting(
    name="retain_uploads",
    group=Group.RUN,
    variable="ETCD_ACTIONS_RETAIN_UPLOADS",
    metavar="DURATION",
    parse=values.time_of_uploads,
    default="336h",
    help="How long uploads, inputs and definitions of images are kept at least that nothing names; "
    "48h or more",
    for_run=True,
)
_collect_uploads: Callable[[str], Literal["yes", "no", "dry-run"]] = values.one_of(
    "yes", "no", "dry-run"
)
COLLECT_UPLOADS: Setting[Literal["yes", "no", "dry-run"]] = Setting(
    name="collect_uploads",
    group=Group.RUN,
    variable="ETCD_ACTIONS_COLLECT_UPLOADS",
    metavar="yes|no|dry-run",
    parse=_collect_uploads,
    default="yes",
    help="Whether to delete uploads, inputs and definitions of images that nothing names; dry-run "
    "only logs how many there are",
    for_run=True,
)
ETCD_QUOTA: Setting[int | None] = Setting(
    name="etcd_quota",
    group=Group.RUN,
    variable="ETCD_ACTIONS_ETCD_QUOTA",
    metavar="SIZE",
    parse=values.size,
    otherwise="what the etcd says: the embedded one, and others from 3.6 on",
    help="How large etcd's database may become before it refuses writes, for --retain-share",
    for_run=True,
)
COLLECT_ORPHANS: Setting[bool] = Setting(
    name="collect_orphans",
    group=Group.RUN,
    variable="ETCD_ACTIONS_COLLECT_ORPHANS",
    metavar="BOOL",
    parse=values.boolean,
    default="true",
    help="Whether to end and delete what lost its parent; Kubernetes does it for what has an owner "
    "reference",
    for_run=True,
)
GRACE: Setting[float] = Setting(
    name="grace",
    group=Group.RUN,
    variable="ETCD_ACTIONS_GRACE",
    metavar="DURATION",
    parse=values.seconds,
    default="10s",
    help="How long stopping may take to finish the work at hand; a bare number is seconds",
    for_run=True,
)
STATS_INTERVAL: Setting[float] = Setting(
    name="stats_interval",
    group=Group.RUN,
    variable="ETCD_ACTIONS_STATS_INTERVAL",
    metavar="DURATION",
    parse=values.seconds,
    default="1m",
    help="How often statistics are logged, 0 for never; a bare number is seconds",
    for_run=True,
)

LISTEN: Setting[Bind | None] = Setting(
    name="listen",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_LISTEN",
    metavar="HOST:PORT|none",
    parse=values.bind,
    default="127.0.0.1:8091",
    help="Where Flyte's ActionsService is served: Connect, gRPC and gRPC-Web on one port",
    for_run=True,
)
LISTEN_CERT: Setting[Path | None] = Setting(
    name="listen_cert",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_LISTEN_CERT",
    metavar="FILE",
    parse=values.file,
    help="The service's own certificate, in PEM; asks for TLS",
    for_run=True,
)
LISTEN_KEY: Setting[Path | None] = Setting(
    name="listen_key",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_LISTEN_KEY",
    metavar="FILE",
    parse=values.file,
    help="The key of that certificate, in PEM, without a passphrase",
    for_run=True,
)
LISTEN_CLIENT_CA: Setting[Path | None] = Setting(
    name="listen_client_ca",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_LISTEN_CLIENT_CA",
    metavar="FILE",
    parse=values.file,
    otherwise="clients need no certificate",
    help="The authorities, in PEM, one of which must vouch for a client's certificate",
    for_run=True,
)
TOKEN_FILE: Setting[Path | None] = Setting(
    name="token_file",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_TOKEN_FILE",
    metavar="FILE",
    parse=values.file,
    otherwise="clients need no token",
    help="Tokens, one a line, each with a name and projects if wanted (TOKEN name=N projects=A,B); "
    "a client must show one of them. Read again when it changes",
    for_run=True,
)
OIDC_ISSUER: Setting[str | None] = Setting(
    name="oidc_issuer",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_OIDC_ISSUER",
    metavar="URL",
    parse=values.url,
    help="An OpenID Connect issuer whose tokens clients may show; needs --oidc-audience",
    for_run=True,
)
OIDC_AUDIENCE: Setting[str | None] = Setting(
    name="oidc_audience",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_OIDC_AUDIENCE",
    metavar="TEXT",
    parse=values.utf8,
    help="The audience that the issuer's tokens must be for",
    for_run=True,
)
OIDC_CLIENT_ID: Setting[str | None] = Setting(
    name="oidc_client_id",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_OIDC_CLIENT_ID",
    metavar="TEXT",
    parse=values.utf8,
    otherwise="clients without a secret of their own cannot log in",
    help="The issuer's client for those without a secret, who log in by a browser",
    for_run=True,
)
OIDC_SCOPES: Setting[tuple[str, ...] | None] = Setting(
    name="oidc_scopes",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_OIDC_SCOPES",
    metavar="TEXT,...",
    parse=values.texts,
    is_list=True,
    help="The scopes that clients ask the issuer for",
    for_run=True,
)
OIDC_SUBJECT_CLAIM: Setting[str] = Setting(
    name="oidc_subject_claim",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_OIDC_SUBJECT_CLAIM",
    metavar="NAME",
    parse=values.utf8,
    default="sub",
    help="The claim of a token that says whose it is",
    for_run=True,
)
OIDC_PROJECTS_CLAIM: Setting[str | None] = Setting(
    name="oidc_projects_claim",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_OIDC_PROJECTS_CLAIM",
    metavar="NAME",
    parse=values.utf8,
    otherwise="a token may use all projects",
    help="The claim of a token that lists the projects that it may use",
    for_run=True,
)
PROJECTS: Setting[tuple[str, ...] | None] = Setting(
    name="projects",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_PROJECTS",
    metavar="NAME,...",
    parse=values.names,
    otherwise="every project that somebody asks for exists",
    is_list=True,
    help="The projects that clients may name; others are refused",
    for_run=True,
)
DOMAINS: Setting[tuple[str, ...]] = Setting(
    name="domains",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_DOMAINS",
    metavar="NAME,...",
    parse=values.names,
    default="development,staging,production",
    is_list=True,
    help="The domains that clients are shown of each project",
    for_run=True,
)
LISTEN_USERS: Setting[Literal["own", "any"] | frozenset[int]] = Setting(
    name="listen_users",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_LISTEN_USERS",
    metavar="own|any|UID,...",
    parse=values.users,
    default="own",
    help="With --executor local and without a token: which users of this machine may connect; "
    "own is the process' user and root",
    is_list=True,
    for_run=True,
)
ALLOWED_HOSTS: Setting[frozenset[str]] = Setting(
    name="allowed_hosts",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_ALLOWED_HOSTS",
    metavar="HOST,...",
    parse=values.hosts,
    default="localhost",
    is_list=True,
    help="Names that requests may be for, besides the loopback addresses and localhost, where a "
    "listener is on one of these",
    for_run=True,
)
MAX_REQUEST_BYTES: Setting[int] = Setting(
    name="max_request_bytes",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_MAX_REQUEST_BYTES",
    metavar="SIZE",
    parse=values.size,
    default="4MiB",
    help="The size of a request, at most",
    for_run=True,
)
BLOB_DIR: Setting[Path | str | None] = Setting(
    name="blob_dir",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_BLOB_DIR",
    metavar="DIRECTORY|URL",
    parse=values.blob_dir,
    otherwise="etcd-actions/blobs in the user's data directory",
    help="Where bundles, inputs and outputs of runs are: a folder, or a URL such as s3://bucket/x",
    for_run=True,
)
MAX_UPLOAD_BYTES: Setting[int] = Setting(
    name="max_upload_bytes",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_MAX_UPLOAD_BYTES",
    metavar="SIZE",
    parse=values.size,
    default="5GiB",
    help="The size of a file that is uploaded, at most",
    for_run=True,
)
MAX_HEADER_BYTES: Setting[int] = Setting(
    name="max_header_bytes",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_MAX_HEADER_BYTES",
    metavar="SIZE",
    parse=values.size,
    default="64KiB",
    help="The size of a request's headers, at most",
    for_run=True,
)
MAX_CONNECTIONS: Setting[int | None] = Setting(
    name="max_connections",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_MAX_CONNECTIONS",
    metavar="N",
    parse=values.count,
    otherwise="half of the descriptors that the process may open, 10000 at most",
    help="Open connections, at most; a new one replaces the oldest that has no request",
    for_run=True,
)
MAX_CONNECTIONS_PER_ADDRESS: Setting[int | None] = Setting(
    name="max_connections_per_address",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_MAX_CONNECTIONS_PER_ADDRESS",
    metavar="N",
    parse=values.count,
    otherwise="half of --max-connections",
    help="Of these, how many one address may have",
    for_run=True,
)
HEADER_TIMEOUT: Setting[float] = Setting(
    name="header_timeout",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_HEADER_TIMEOUT",
    metavar="DURATION",
    parse=values.positive_duration,
    default="10s",
    help="How long a client may take for its first request, and for the headers of each",
    for_run=True,
)
MAX_STREAMS: Setting[int] = Setting(
    name="max_streams",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_MAX_STREAMS",
    metavar="N",
    parse=values.count,
    default="10000",
    help="Open streams of updates, at most",
    for_run=True,
)
RATE_LIMIT: Setting[float] = Setting(
    name="rate_limit",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_RATE_LIMIT",
    metavar="N",
    parse=values.rate,
    default="1000",
    help="Requests a second of one client, at most, twice as many in a burst; 0 for no limit",
    for_run=True,
)
REQUEST_TIMEOUT: Setting[float] = Setting(
    name="request_timeout",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_REQUEST_TIMEOUT",
    metavar="DURATION",
    parse=values.positive_duration,
    default="30s",
    help="How long a request may take that is no stream",
    for_run=True,
)
STREAM_KEEPALIVE: Setting[float] = Setting(
    name="stream_keepalive",
    group=Group.SERVICE,
    variable="ETCD_ACTIONS_STREAM_KEEPALIVE",
    metavar="DURATION",
    parse=values.positive_duration,
    default="30s",
    help="After this silence a stream gets a sign of life",
    for_run=True,
)

MONITORING_LISTEN: Setting[Bind | None] = Setting(
    name="monitoring_listen",
    group=Group.MONITORING,
    variable="ETCD_ACTIONS_MONITORING_LISTEN",
    metavar="HOST:PORT|none",
    parse=values.bind,
    default="127.0.0.1:8092",
    help="Where /healthz, /readyz and /metrics are served, without TLS and tokens",
    for_run=True,
)
READY_WITHIN: Setting[float] = Setting(
    name="ready_within",
    group=Group.MONITORING,
    variable="ETCD_ACTIONS_READY_WITHIN",
    metavar="DURATION",
    parse=values.positive_duration,
    default="30s",
    help="How long etcd may have been silent before the process counts as not ready",
    for_run=True,
)
OTLP_ENDPOINT: Setting[str | None] = Setting(
    name="otlp_endpoint",
    group=Group.MONITORING,
    variable="ETCD_ACTIONS_OTLP_ENDPOINT",
    metavar="URL",
    parse=values.url,
    otherwise="no traces",
    help="Where OpenTelemetry's traces go, over HTTP, such as http://127.0.0.1:4318",
    for_run=True,
)
DRAIN_DELAY: Setting[float] = Setting(
    name="drain_delay",
    group=Group.MONITORING,
    variable="ETCD_ACTIONS_DRAIN_DELAY",
    metavar="DURATION",
    parse=values.seconds,
    default="0s",
    help="How long to go on serving as not ready before the process stops, for load balancers",
    for_run=True,
)

_executor: Callable[[str], Literal["none", "local"]] = values.one_of("none", "local")
EXECUTOR: Setting[Literal["none", "local"]] = Setting(
    name="executor",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_EXECUTOR",
    metavar="none|local",
    parse=_executor,
    default="none",
    help="local runs actions on this machine: whoever may enqueue can run commands here then",
    for_run=True,
)
PYTHON: Setting[Path | None] = Setting(
    name="python",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_PYTHON",
    metavar="FILE",
    parse=values.file,
    otherwise="the interpreter that runs this",
    help="The interpreter that has Flyte's SDK",
    for_run=True,
)
EXECUTOR_FORK_SERVER: Setting[bool] = Setting(
    name="executor_fork_server",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_EXECUTOR_FORK_SERVER",
    metavar="BOOL",
    parse=values.boolean,
    default="true",
    help="Whether tasks are started by a process that has imported the SDK; false is slower",
    for_run=True,
)
EXECUTOR_SLOTS: Setting[int] = Setting(
    name="executor_slots",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_EXECUTOR_SLOTS",
    metavar="N",
    parse=values.count,
    default="4",
    help="How many actions run at once; those that wait for their children do not count",
    for_run=True,
)
EXECUTOR_MEMORY: Setting[int | None] = Setting(
    name="executor_memory",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_EXECUTOR_MEMORY",
    metavar="SIZE",
    parse=values.size,
    otherwise="no limit",
    help="How much memory actions may use together before no more are started",
    for_run=True,
)
EXECUTOR_STATE_DIR: Setting[Path | None] = Setting(
    name="executor_state_dir",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_EXECUTOR_STATE_DIR",
    metavar="DIRECTORY",
    parse=values.directory,
    otherwise="etcd-actions/executor in the user's data directory",
    help="Where locks and logs of actions are; executors that take over share it",
    for_run=True,
)
EXECUTOR_KEEP: Setting[float] = Setting(
    name="executor_keep",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_EXECUTOR_KEEP",
    metavar="DURATION",
    parse=values.positive_duration,
    default="168h",
    help="How long logs and the like of an attempt are kept once it has ended",
    for_run=True,
)
EXECUTOR_CACHE_KEEP: Setting[float] = Setting(
    name="executor_cache_keep",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_EXECUTOR_CACHE_KEEP",
    metavar="DURATION",
    parse=values.duration,
    default="720h",
    help="How long a cached result is kept after it was used for the last time; 0 caches nothing",
    for_run=True,
)
EXECUTOR_CLAIM_TTL: Setting[int] = Setting(
    name="executor_claim_ttl",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_EXECUTOR_CLAIM_TTL",
    metavar="N",
    parse=values.count,
    default="15",
    help="Seconds without a sign of life after which another executor takes over",
    for_run=True,
)
_images: Callable[[str], Literal["check", "ignore", "off"]] = values.one_of(
    "check", "ignore", "off"
)
IMAGES: Setting[Literal["check", "ignore", "off"]] = Setting(
    name="images",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_IMAGES",
    metavar="check|ignore|off",
    parse=_images,
    default="check",
    help="Packages of images: check refuses images with more than that, ignore leaves the rest "
    "out, off installs nothing",
    for_run=True,
)
IMAGE_DIR: Setting[Path | None] = Setting(
    name="image_dir",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_IMAGE_DIR",
    metavar="DIRECTORY",
    parse=values.directory,
    otherwise="images in the executor's state directory",
    help="Where the packages of images are installed",
    for_run=True,
)
IMAGE_BYTES: Setting[int | None] = Setting(
    name="image_bytes",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_IMAGE_BYTES",
    metavar="SIZE",
    parse=values.size,
    default="10GiB",
    help="How much disk they may take; those unused for longest go first",
    for_run=True,
)
IMAGE_KEEP: Setting[float] = Setting(
    name="image_keep",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_IMAGE_KEEP",
    metavar="DURATION",
    parse=values.positive_duration,
    default="720h",
    help="How long they are kept without being used",
    for_run=True,
)
IMAGE_TIMEOUT: Setting[float] = Setting(
    name="image_timeout",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_IMAGE_TIMEOUT",
    metavar="DURATION",
    parse=values.positive_duration,
    default="15m",
    help="How long it may take to install those of one image",
    for_run=True,
)
_secrets: Callable[[str], tuple[SecretSource, ...] | None] = parse_secret_sources
TASK_SECRETS: Setting[tuple[SecretSource, ...] | None] = Setting(
    name="secret",
    group=Group.EXECUTOR,
    variable="ETCD_ACTIONS_SECRET",
    metavar="NAME=env:VARIABLE|NAME=file:PATH",
    parse=_secrets,
    otherwise="tasks get no secrets",
    is_list=True,
    help="A secret that tasks may ask for, and where it is: never its value",
    for_run=True,
)

ASKED_SERVICE: Setting[Endpoint | None] = Setting(
    name="service",
    group=Group.ASKING,
    variable="ETCD_ACTIONS_SERVICE",
    metavar="HOST:PORT",
    parse=values.service,
    otherwise="etcd is asked",
    help="Flyte's ActionsService, over gRPC; https:// before the host asks for TLS",
    for_asking=True,
)
SERVICE_CACERT: Setting[Path | None] = Setting(
    name="service_cacert",
    group=Group.ASKING,
    variable="ETCD_ACTIONS_SERVICE_CACERT",
    metavar="FILE",
    parse=values.file,
    otherwise="the system's",
    help="The authorities, in PEM, that may vouch for the service's certificate; asks for TLS",
    for_asking=True,
)
SERVICE_TOKEN_FILE: Setting[Path | None] = Setting(
    name="service_token_file",
    group=Group.ASKING,
    variable="ETCD_ACTIONS_SERVICE_TOKEN_FILE",
    metavar="FILE",
    parse=values.file,
    help="Where the token is that the service wants",
    for_asking=True,
)

LOG_LEVEL: Setting[str] = Setting(
    name="log_level",
    group=Group.LOGS,
    variable="ETCD_ACTIONS_LOG_LEVEL",
    metavar="debug|info|warning|error",
    parse=values.one_of("debug", "info", "warning", "error"),
    default="info",
    help="The least important that is logged",
)
LOG_FORMAT: Setting[str] = Setting(
    name="log_format",
    group=Group.LOGS,
    variable="ETCD_ACTIONS_LOG_FORMAT",
    metavar="auto|console|json",
    parse=values.one_of("auto", "console", "json"),
    default="auto",
    help="auto is console on a terminal, else json",
)

SETTINGS: tuple[Setting[object], ...] = (
    CONFIG,
    ENDPOINTS,
    TRANSPORT,
    PREFIX,
    NAMESPACE,
    NAMESPACE_TEMPLATE,
    CODEC,
    FINALIZER,
    CACERT,
    CERT,
    KEY,
    TLS_SERVER_NAME,
    INSECURE_TRANSPORT,
    INSECURE_SKIP_TLS_VERIFY,
    USER,
    PASSWORD,
    PASSWORD_FILE,
    DIAL_TIMEOUT,
    COMMAND_TIMEOUT,
    KEEPALIVE_TIME,
    KEEPALIVE_TIMEOUT,
    DATA_DIR,
    EMBEDDED_PORT,
    RUN_SERVICE,
    RETAIN_TERMINAL,
    RETAIN_RUNS,
    RETAIN_SHARE,
    RETAIN_UPLOADS,
    COLLECT_UPLOADS,
    ETCD_QUOTA,
    COLLECT_ORPHANS,
    GRACE,
    STATS_INTERVAL,
    LISTEN,
    LISTEN_CERT,
    LISTEN_KEY,
    LISTEN_CLIENT_CA,
    TOKEN_FILE,
    OIDC_ISSUER,
    OIDC_AUDIENCE,
    OIDC_CLIENT_ID,
    OIDC_SCOPES,
    OIDC_SUBJECT_CLAIM,
    OIDC_PROJECTS_CLAIM,
    PROJECTS,
    DOMAINS,
    LISTEN_USERS,
    ALLOWED_HOSTS,
    MAX_REQUEST_BYTES,
    BLOB_DIR,
    MAX_UPLOAD_BYTES,
    MAX_HEADER_BYTES,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_ADDRESS,
    HEADER_TIMEOUT,
    MAX_STREAMS,
    RATE_LIMIT,
    REQUEST_TIMEOUT,
    STREAM_KEEPALIVE,
    MONITORING_LISTEN,
    READY_WITHIN,
    OTLP_ENDPOINT,
    DRAIN_DELAY,
    EXECUTOR,
    PYTHON,
    EXECUTOR_FORK_SERVER,
    EXECUTOR_SLOTS,
    EXECUTOR_MEMORY,
    EXECUTOR_STATE_DIR,
    EXECUTOR_KEEP,
    EXECUTOR_CACHE_KEEP,
    EXECUTOR_CLAIM_TTL,
    IMAGES,
    IMAGE_DIR,
    IMAGE_BYTES,
    IMAGE_KEEP,
    IMAGE_TIMEOUT,
    TASK_SECRETS,
    ASKED_SERVICE,
    SERVICE_CACERT,
    SERVICE_TOKEN_FILE,
    LOG_LEVEL,
    LOG_FORMAT,
)
"""All of them, in the order in which they are shown."""

COMMON: tuple[Setting[object], ...] = tuple(
    each for each in SETTINGS if not (each.for_run or each.for_asking)
)
"""Those that every command has."""

ASKING: tuple[Setting[object], ...] = tuple(each for each in SETTINGS if not each.for_run)
"""Those of the commands that may ask the service instead of etcd."""

SUBMITTING: tuple[Setting[object], ...] = (*ASKING, BLOB_DIR, PYTHON)
"""Those of the command that needs Flyte's SDK, and a place for files of runs, too."""

SECRET: tuple[Setting[object], ...] = (USER, PASSWORD)
"""Those whose text may hold a password."""
