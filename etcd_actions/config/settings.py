"""The table of all settings; flags, variables, ``config show`` and help follow from it.

``docs/configuration.md`` has the same rows, and a test compares them. The file is above 500 lines
because it is one table, which is read and searched as one.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from etcd_actions._internal.secret_sources import parse_secret_sources
from etcd_actions.config import kinds, values
from etcd_actions.config.kinds import Kind, choice
from etcd_actions.config.setting import Group, Setting
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.model import DEFAULT_KEY_PREFIX, DEFAULT_NAMESPACE

CodecName: TypeAlias = Literal["json", "protobuf", "msgpack"]

_CONFIG_FILE = Group("A file with settings")
_ETCD = Group("The connection to etcd")
_KEYS = Group("Keys and values")
_TLS = Group("Encryption")
_USER = Group("User")
_TIMES = Group("Times, such as 500ms, 5s or 1m30s")
_EMBEDDED = Group("The embedded etcd")
_EMBEDDED_RUN = Group("The embedded etcd", scope="run")
_RUN = Group("The process", scope="run")
_SERVE = Group("The service for Flyte's SDK", scope="run")
_MONITORING = Group("Health and metrics", scope="run")
_EXECUTOR = Group("The local executor", scope="run")
_WORKER = Group("The offer of a worker", scope="worker")
_BACKEND = Group("The service instead of etcd", scope="backend")
_LOGS = Group("Logs, on standard error")

CONFIG = _CONFIG_FILE.optional(
    "config",
    kinds.FILE,
    "A TOML file that has settings by their names, such as endpoints or token_file",
)

ENDPOINTS = _ETCD.optional(
    "endpoints",
    Kind("HOST:PORT,...", values.endpoints, is_list=True),
    "The addresses of etcd's members; https:// before a host switches TLS on",
    otherwise="the embedded etcd",
)
_TRANSPORT_NAMES: Kind[TransportName] = choice("grpc", "gateway")
TRANSPORT = _ETCD.setting(
    "transport", _TRANSPORT_NAMES, "grpc", "gateway is for networks that only HTTP/1.1 passes"
)

PREFIX = _KEYS.setting(
    "prefix",
    kinds.PREFIX,
    DEFAULT_KEY_PREFIX.decode(),
    "The prefix of the keys, before the namespace",
)
NAMESPACE = _KEYS.optional(
    "namespace", Kind("NAME", values.namespace), "The only namespace", otherwise="all namespaces"
)
NAMESPACE_TEMPLATE = _KEYS.optional(
    "namespace_template",
    kinds.NAMESPACE_TEMPLATE,
    "A namespace for each project and domain, such as {project}-{domain}",
    otherwise=f"one namespace, {DEFAULT_NAMESPACE}, or that of --namespace",
)
_CODEC_NAMES: Kind[CodecName] = choice("json", "protobuf", "msgpack")
CODEC = _KEYS.setting(
    "codec",
    _CODEC_NAMES,
    "json",
    "The stored form of new objects; Kubernetes reads only json",
)
FINALIZER = _KEYS.setting(
    "finalizer",
    kinds.BOOL,
    "true",
    "Whether new objects get our finalizer, which keeps them until their terminal state is "
    "recorded; false if an API server encrypts actions at rest",
)

CACERT = _TLS.optional(
    "cacert",
    kinds.FILE,
    "The authorities, in PEM, that may sign etcd's certificate; switches TLS on",
    otherwise="the system's",
)
CERT = _TLS.optional("cert", kinds.FILE, "The client's own certificate, in PEM; switches TLS on")
KEY = _TLS.optional("key", kinds.FILE, "The key of that certificate, in PEM, without a passphrase")
TLS_SERVER_NAME = _TLS.optional(
    "tls_server_name",
    kinds.NAME,
    "The name that etcd's certificate must have; switches TLS on",
    otherwise="the endpoint's host",
)
INSECURE_TRANSPORT = _TLS.setting(
    "insecure_transport",
    kinds.BOOL,
    "true",
    "false switches TLS on; true leaves that to the other settings",
)
INSECURE_SKIP_TLS_VERIFY = _TLS.setting(
    "insecure_skip_tls_verify",
    kinds.BOOL,
    "false",
    "With TLS, accept any certificate; only for trials",
)

USER = _USER.optional(
    "user",
    kinds.USER,
    "The user of etcd; all of the text is the name if the password is given separately",
)
PASSWORD = _USER.optional(
    "password",
    kinds.PASSWORD,
    "The user's password; a file or the variable hides it from other users of the machine",
    otherwise="the terminal prompts for it",
)
PASSWORD_FILE = _USER.optional(
    "password_file", kinds.FILE, "The file with the password, read at each authentication"
)

DIAL_TIMEOUT = _TIMES.setting("dial_timeout", kinds.DURATION, "2s", "How long connecting may take")
COMMAND_TIMEOUT = _TIMES.setting(
    "command_timeout", kinds.DURATION, "5s", "How long one request to etcd may take"
)
KEEPALIVE_TIME = _TIMES.setting(
    "keepalive_time",
    kinds.DURATION_OR_ZERO,
    "10s",
    "The idle time after which a connection sends a ping; less than 10s is raised to 10s",
)
KEEPALIVE_TIMEOUT = _TIMES.setting(
    "keepalive_timeout", kinds.DURATION, "3s", "How long the response to the ping may take"
)

DATA_DIR = _EMBEDDED.optional(
    "data_dir",
    kinds.DIRECTORY,
    "The embedded etcd's directory",
    otherwise="etcd-actions/default in the user's data directory",
)
EMBEDDED_PORT = _EMBEDDED_RUN.setting(
    "embedded_port",
    Kind("PORT", values.port),
    "2379",
    "Where the embedded etcd listens; another port when this one is taken",
)

RUN_SERVICE = _RUN.optional(
    "run_service",
    kinds.SERVER,
    "Flyte's run service, over gRPC; https:// before the host switches TLS on",
    otherwise="no reports; terminal actions are marked at once",
)
RETAIN_TERMINAL = _RUN.optional(
    "retain_terminal",
    kinds.DURATION,
    "How long recorded actions are kept before they expire; actions that still run below one are "
    "aborted with it",
    otherwise="kept until another process deletes them",
)
RETAIN_RUNS = _RUN.setting(
    "retain_runs",
    kinds.DURATION,
    "720h",
    "How long a run is kept after its end: its record, histories, actions and data; with "
    "--executor none and --run-service only record and histories are deleted",
)
RETAIN_SHARE = _RUN.setting(
    "retain_share",
    Kind("SHARE", values.share),
    "0.5",
    "The part of etcd's quota above which the oldest ended runs are deleted sooner; 0 for none",
)
RETAIN_UPLOADS = _RUN.setting(
    "retain_uploads",
    Kind("DURATION", values.time_of_uploads),
    "336h",
    "How long unreferenced uploads, inputs and definitions of images are kept; 48h or more",
)
_COLLECT_UPLOADS_NAMES: Kind[Literal["yes", "no", "dry-run"]] = choice("yes", "no", "dry-run")
COLLECT_UPLOADS = _RUN.setting(
    "collect_uploads",
    _COLLECT_UPLOADS_NAMES,
    "yes",
    "Whether to delete unreferenced uploads, inputs and definitions of images; dry-run only logs "
    "their number",
)
ETCD_QUOTA = _RUN.optional(
    "etcd_quota",
    kinds.SIZE,
    "How large etcd's database may become before it refuses writes, for --retain-share",
    otherwise="the quota that etcd reports: the embedded one, and others from 3.6 on",
)
COLLECT_ORPHANS = _RUN.setting(
    "collect_orphans",
    kinds.BOOL,
    "true",
    "Whether to end and delete actions whose parent does not exist; Kubernetes does it for "
    "objects with an owner reference",
)
SHARDS = _RUN.optional(
    "shards",
    kinds.COUNT,
    "Into how many shards, ranges of runs, the actions are divided, which all processes with this "
    "setting share; at most 60. The number counts while there are no shards; later they are split "
    "and merged by their sizes",
    otherwise="one process at a time leads for all actions",
)
GRACE = _RUN.setting(
    "grace",
    kinds.SECONDS,
    "10s",
    "How long stopping may take to finish the work in progress; a bare number is seconds",
)
STATS_INTERVAL = _RUN.setting(
    "stats_interval",
    kinds.SECONDS,
    "10m",
    "How often statistics are logged, 0 for never; a bare number is seconds",
)

LISTEN = _SERVE.setting(
    "listen",
    kinds.BIND,
    "127.0.0.1:8091",
    "Where Flyte's ActionsService is served: Connect, gRPC and gRPC-Web on one port",
)
LISTEN_CERT = _SERVE.optional(
    "listen_cert", kinds.FILE, "The service's own certificate, in PEM; switches TLS on"
)
LISTEN_KEY = _SERVE.optional(
    "listen_key", kinds.FILE, "The key of that certificate, in PEM, without a passphrase"
)
LISTEN_CLIENT_CA = _SERVE.optional(
    "listen_client_ca",
    kinds.FILE,
    "The authorities, in PEM, one of which must have signed a client's certificate",
    otherwise="clients need no certificate",
)
TOKEN_FILE = _SERVE.optional(
    "token_file",
    kinds.FILE,
    "Tokens, one a line, each with an optional name and projects (TOKEN name=N projects=A,B), or "
    "of workers (TOKEN name=N role=worker); a client must send one of them. The file is read again "
    "when it changes",
    otherwise="clients need no token",
)
WORKER_ACCESS = _SERVE.setting(
    "worker_access",
    kinds.BOOL,
    "false",
    "Whether workers may use the service instead of etcd, by the tokens with role=worker of "
    "--token-file",
)
OIDC_ISSUER = _SERVE.optional(
    "oidc_issuer",
    kinds.URL,
    "An OpenID Connect issuer whose tokens clients may send; needs --oidc-audience",
)
OIDC_AUDIENCE = _SERVE.optional(
    "oidc_audience", kinds.TEXT, "The audience that the issuer's tokens must have"
)
OIDC_CLIENT_ID = _SERVE.optional(
    "oidc_client_id",
    kinds.TEXT,
    "The issuer's client for clients without a secret, which log in by a browser",
    otherwise="clients without a secret cannot log in",
)
OIDC_SCOPES = _SERVE.optional(
    "oidc_scopes",
    Kind("TEXT,...", values.texts, is_list=True),
    "The scopes that clients request from the issuer",
)
OIDC_SUBJECT_CLAIM = _SERVE.setting(
    "oidc_subject_claim", kinds.NAME, "sub", "The claim of a token that names its owner"
)
OIDC_PROJECTS_CLAIM = _SERVE.optional(
    "oidc_projects_claim",
    kinds.NAME,
    "The claim of a token that lists the projects that it may use",
    otherwise="a token may use all projects",
)
PROJECTS = _SERVE.optional(
    "projects",
    kinds.NAMES,
    "The projects that clients may name; others are rejected",
    otherwise="every requested project exists",
)
DOMAINS = _SERVE.setting(
    "domains",
    kinds.NAMES,
    "development,staging,production",
    "The domains of every project",
)
LISTEN_USERS = _SERVE.setting(
    "listen_users",
    Kind("own|any|UID,...", values.users, is_list=True),
    "own",
    "With --executor local and without a token: which users of this machine may connect; own is "
    "the process' user and root",
)
ALLOWED_HOSTS = _SERVE.setting(
    "allowed_hosts",
    Kind("HOST,...", values.hosts, is_list=True),
    "localhost",
    "Host names that requests may have, in addition to loopback addresses and localhost, if a "
    "listener is on one of these",
)
MAX_REQUEST_BYTES = _SERVE.setting(
    "max_request_bytes", kinds.SIZE, "4MiB", "The size of a request, at most"
)
BLOB_DIR = _SERVE.optional(
    "blob_dir",
    Kind("DIRECTORY|URL", values.blob_dir),
    "Where bundles, inputs and outputs of runs are: a folder, or a URL such as s3://bucket/x",
    otherwise="etcd-actions/blobs in the user's data directory",
)
MAX_UPLOAD_BYTES = _SERVE.setting(
    "max_upload_bytes", kinds.SIZE, "5GiB", "The size of a file that is uploaded, at most"
)
MAX_HEADER_BYTES = _SERVE.setting(
    "max_header_bytes", kinds.SIZE, "64KiB", "The size of a request's headers, at most"
)
MAX_CONNECTIONS = _SERVE.optional(
    "max_connections",
    kinds.COUNT,
    "Open connections, at most; a new one replaces the oldest that has no request",
    otherwise="half of the descriptors that the process may open, 10000 at most",
)
MAX_CONNECTIONS_PER_ADDRESS = _SERVE.optional(
    "max_connections_per_address",
    kinds.COUNT,
    "Open connections of one address, at most",
    otherwise="half of --max-connections",
)
HEADER_TIMEOUT = _SERVE.setting(
    "header_timeout",
    kinds.DURATION,
    "10s",
    "How long a client may take for its first request, and for the headers of each",
)
MAX_STREAMS = _SERVE.setting(
    "max_streams",
    kinds.COUNT,
    "10000",
    "Open streams of methods, and as many of the page's own, at most",
)
RATE_LIMIT = _SERVE.setting(
    "rate_limit",
    Kind("N", values.rate),
    "1000",
    "Requests a second of one client, at most, twice as many in a burst; 0 for no limit",
)
REQUEST_TIMEOUT = _SERVE.setting(
    "request_timeout", kinds.DURATION, "30s", "How long a request that is not a stream may take"
)
PAGE = _SERVE.setting(
    "page",
    kinds.BOOL,
    "true",
    "Whether a page for browsers is served, at / on the service's port",
)
PAGE_ACTIONS = _SERVE.setting(
    "page_actions",
    kinds.BOOL,
    "false",
    "Whether the page has buttons that abort and signal; without it the page only reads",
)
STREAM_KEEPALIVE = _SERVE.setting(
    "stream_keepalive",
    kinds.DURATION,
    "30s",
    "The idle time after which a stream gets a keep-alive message",
)

MONITORING_LISTEN = _MONITORING.setting(
    "monitoring_listen",
    kinds.BIND,
    "127.0.0.1:8092",
    "Where /healthz, /readyz and /metrics are served, without TLS and tokens",
)
READY_WITHIN = _MONITORING.setting(
    "ready_within",
    kinds.DURATION,
    "30s",
    "How long etcd may have been silent before the process counts as not ready",
)
OTLP_ENDPOINT = _MONITORING.optional(
    "otlp_endpoint",
    kinds.URL,
    "The OpenTelemetry collector for traces and logs, over HTTP, such as http://127.0.0.1:4318",
    otherwise="none are sent",
)
DRAIN_DELAY = _MONITORING.setting(
    "drain_delay",
    kinds.SECONDS,
    "0s",
    "How long to serve as not ready before the process stops, for load balancers",
)
_EXECUTOR_NAMES: Kind[Literal["none", "local", "ray"]] = choice("none", "local", "ray")

EXECUTOR = _EXECUTOR.setting(
    "executor",
    _EXECUTOR_NAMES,
    "none",
    "local runs actions on this machine, ray on a Ray cluster: a client that may enqueue can then "
    "run commands there; for a worker none means local",
)
RAY_ADDRESS = _EXECUTOR.optional(
    "ray_address",
    kinds.URL,
    "The head of the Ray cluster, such as http://head:8265, for --executor ray",
    otherwise="none",
)
RAY_TOKEN_FILE = _EXECUTOR.optional(
    "ray_token_file", kinds.FILE, "A file with the token of a Ray cluster", otherwise="no token"
)
TASKS_LISTEN = _EXECUTOR.optional(
    "tasks_listen",
    kinds.BIND,
    "A port for tasks alone, without TLS and tokens: each client that reaches it can run commands",
    otherwise="tasks use --listen of run, or a port on 127.0.0.1",
)
PYTHON = _EXECUTOR.optional(
    "python",
    kinds.FILE,
    "The interpreter that has Flyte's SDK; with --executor ray on the nodes",
    otherwise="the interpreter that runs this; with --executor ray a0 in the nodes' PATH",
)
EXECUTOR_FORK_SERVER = _EXECUTOR.setting(
    "executor_fork_server",
    kinds.BOOL,
    "true",
    "Whether tasks are started by a process that has imported the SDK; false is slower",
)
EXECUTOR_SLOTS = _EXECUTOR.setting(
    "executor_slots",
    kinds.COUNT,
    "4",
    "How many actions run at once; those that wait for their children do not count",
)
EXECUTOR_MEMORY = _EXECUTOR.optional(
    "executor_memory",
    kinds.SIZE,
    "How much memory actions may use together before no more are started",
    otherwise="no limit",
)
EXECUTOR_STATE_DIR = _EXECUTOR.optional(
    "executor_state_dir",
    kinds.DIRECTORY,
    "Where locks and logs of actions are; executors that take over share it",
    otherwise="etcd-actions/executor in the user's data directory",
)
EXECUTOR_KEEP = _EXECUTOR.setting(
    "executor_keep",
    kinds.DURATION,
    "168h",
    "How long the files of an attempt, such as its log, are kept after its end",
)
EXECUTOR_CACHE_KEEP = _EXECUTOR.setting(
    "executor_cache_keep",
    kinds.DURATION_OR_ZERO,
    "720h",
    "How long a cached result is kept after it was used for the last time; 0 caches nothing",
)
EXECUTOR_CLAIM_TTL = _EXECUTOR.setting(
    "executor_claim_ttl",
    kinds.COUNT,
    "15",
    "Seconds without a renewed claim after which another executor takes over",
)
_IMAGES_NAMES: Kind[Literal["check", "ignore", "off"]] = choice("check", "ignore", "off")
IMAGES = _EXECUTOR.setting(
    "images",
    _IMAGES_NAMES,
    "check",
    "Packages of images: check rejects images that need more, ignore omits the rest, off installs "
    "nothing",
)
IMAGE_DIR = _EXECUTOR.optional(
    "image_dir",
    kinds.DIRECTORY,
    "Where the packages of images are installed",
    otherwise="images in the executor's state directory",
)
IMAGE_BYTES = _EXECUTOR.setting(
    "image_bytes",
    kinds.SIZE,
    "10GiB",
    "How much disk they may take; the least recently used are deleted first",
)
IMAGE_KEEP = _EXECUTOR.setting(
    "image_keep", kinds.DURATION, "720h", "How long unused packages are kept"
)
IMAGE_TIMEOUT = _EXECUTOR.setting(
    "image_timeout", kinds.DURATION, "15m", "How long installing the packages of one image may take"
)
TASK_SECRETS = _EXECUTOR.optional(
    "secret",
    Kind("NAME=env:VARIABLE|NAME=file:PATH", parse_secret_sources, is_list=True),
    "A secret that tasks may read, and its source, never its value",
    otherwise="tasks get no secrets",
)

CPUS = _WORKER.optional(
    "cpus",
    kinds.CPUS,
    "How many CPUs the actions of a worker may request together",
    otherwise="those that the process may use",
)
GPUS = _WORKER.setting(
    "gpus", kinds.NUMBER, "0", "How many GPUs the actions of a worker may request together"
)
POOL = _WORKER.setting(
    "pool",
    kinds.NAMES,
    "default",
    "The queues or cluster pools whose actions a worker runs; an action without one is in default",
)
LABEL = _WORKER.optional(
    "label", kinds.LABELS, "A label of a worker, for actions that require it, such as zone=a"
)

SERVICE = _BACKEND.optional(
    "service",
    kinds.SERVERS,
    "The addresses of Flyte's ActionsService, over gRPC, of which one that answers is used; "
    "https:// before a host switches TLS on",
    otherwise="etcd, without a service",
)
SERVICE_CACERT = _BACKEND.optional(
    "service_cacert",
    kinds.FILE,
    "The authorities, in PEM, that may sign the service's certificate; switches TLS on",
    otherwise="the system's",
)
SERVICE_TOKEN_FILE = _BACKEND.optional(
    "service_token_file", kinds.FILE, "The file with the token for the service"
)

LOG_LEVEL = _LOGS.setting(
    "log_level",
    choice("debug", "info", "warning", "error"),
    "info",
    "The lowest level that is logged",
)
LOG_FORMAT = _LOGS.setting(
    "log_format",
    choice("auto", "console", "json"),
    "auto",
    "auto is console on a terminal, else json",
)

SETTINGS: tuple[Setting[object], ...] = tuple(
    each for each in globals().values() if isinstance(each, Setting)
)
"""All settings, in the order of this file."""

COMMON: tuple[Setting[object], ...] = tuple(each for each in SETTINGS if each.scope == "all")
"""The settings of every command."""

BACKEND: tuple[Setting[object], ...] = tuple(
    each for each in SETTINGS if each.scope in ("all", "backend")
)
"""The settings of the commands that can use the service instead of etcd."""

RUN: tuple[Setting[object], ...] = tuple(each for each in SETTINGS if each.scope in ("all", "run"))
"""The settings of ``run``."""

WORKER: tuple[Setting[object], ...] = tuple(
    each
    for each in SETTINGS
    if each.scope in ("all", "worker")
    or each.group == _BACKEND.title
    or each in (GRACE, STATS_INTERVAL, LISTEN_USERS, BLOB_DIR)
    or each.group in (_MONITORING.title, _EXECUTOR.title)
)
"""The settings of ``worker``: those of the executor, without those of the service."""

SUBMIT: tuple[Setting[object], ...] = (*BACKEND, BLOB_DIR, PYTHON)
"""The settings of ``submit``, which needs Flyte's SDK and a store for the files of runs."""

FILES: tuple[Setting[object], ...] = (*BACKEND, BLOB_DIR, EXECUTOR_STATE_DIR)
"""Those of commands that read or delete files of runs."""

SECRET: tuple[Setting[object], ...] = (USER, PASSWORD)
"""The settings whose text can have a password."""
