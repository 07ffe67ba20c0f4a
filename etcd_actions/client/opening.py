"""Opens a client: makes and connects its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from etcd_actions._internal.argument_types import checks_types
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.enqueue import Enqueuer
from etcd_actions.actions.listing import Lister
from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.recovery import Recovery
from etcd_actions.client.client import ActionsClient
from etcd_actions.client.subscribing import Subscribing
from etcd_actions.codecs import codec_named
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.model import DEFAULT_KEY_PREFIX, DEFAULT_NAMESPACE, Keyspace, NamespaceTemplate
from etcd_actions.pipeline.processor import Processor
from etcd_actions.pipeline.sharded_processor import open_any_processor
from etcd_actions.pipeline.shared_watches import Scope
from etcd_actions.pipeline.watched_scope import scope_of, scope_of_run
from etcd_actions.pipeline.watching_settings import WatchingSettings
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.storage.store import Store


@checks_types
@asynccontextmanager
async def open_actions_client(
    etcd: Etcd,
    *,
    prefix: bytes = DEFAULT_KEY_PREFIX,
    namespace: str = DEFAULT_NAMESPACE,
    namespace_template: str | NamespaceTemplate | None = None,
    all_namespaces: bool = False,
    run_service: RunService | None = None,
    codec: str = "json",
    settings: WatchingSettings | None = None,
    containment: Containment | None = None,
) -> AsyncIterator[ActionsClient]:
    """Open a client; leaving the context stops its watch and ends all subscriptions.

    Afterwards each method raises :class:`trio.ClosedResourceError`, except
    :meth:`ActionsClient.stop_watching` and :meth:`ActionsClient.unsubscribe`, which do nothing.

    Args:
        etcd: The connection; it must live longer.
        prefix: The part of the keys before ``<namespace>/<name>``.
        namespace: The Kubernetes namespace of all actions.
        namespace_template: Names the namespace of each action by its project and domain
            instead, such as ``{project}-{domain}``; then all namespaces are watched, recorded
            and marked. See :class:`~etcd_actions.model.NamespaceTemplate`.
        all_namespaces: Watch, record and mark in all other namespaces, too.
        run_service: Receives a report of each change, and has to accept a terminal state before it
            is marked; by default terminal states are marked at once.
        codec: The stored form of new objects: ``json``, ``protobuf`` or ``msgpack``. A Kubernetes
            API server can read only ``json``.
        settings: How the client watches, and whether new objects get its finalizer.
        containment: Counts unexpected failures; by default one of its own.

    Raises:
        ConfigError: There is no such codec, or the template makes no namespaces, or the settings
            have shards and no election.
        WrongType: An argument is of another type.
        BackgroundFailure: A background task failed unexpectedly.
    """
    template = namespace_template
    if isinstance(template, str):
        try:
            template = NamespaceTemplate(template)
        except ValueError as error:
            raise ConfigError(f"namespace_template: {template!r} {error}") from None
    settings = settings or WatchingSettings()
    containment = containment or Containment()
    form = codec_named(codec)
    async with open_group_commit(etcd, containment) as commit:
        store = Store(etcd, commit.txn, commit.get)
        keys = Keyspace(prefix, namespace, template=template)
        cache = ReadCache()
        async with (
            open_any_processor(
                etcd,
                store,
                keys=keys,
                namespace=None if all_namespaces else keys.namespace,
                run_service=run_service or NullRunService(),
                settings=settings,
                containment=containment,
                on_replaced=cache.clear,
            ) as processor,
            owned_tasks("the client") as nursery,
        ):

            def watcher(scope: Scope) -> Processor:
                return Processor(
                    nursery,
                    etcd,
                    store,
                    None,
                    scope=scope_of(keys, scope.namespace)
                    if scope.run is None
                    else scope_of_run(keys.within(scope.namespace or namespace), scope.run),
                    run_service=NullRunService(),
                    settings=replace(settings, record=False),
                    containment=containment,
                )

            lister, recovery = Lister(store, keys, cache), Recovery(store, keys)
            client = ActionsClient(
                etcd,
                commit,
                store,
                keys,
                cache,
                containment,
                processor,
                Enqueuer(store, keys, form, finalizer=settings.finalizer, cache=cache),
                Aborter(store, keys, finalizer=settings.finalizer),
                lister,
                Subscribing(keys, processor, watcher, lister, recovery),
            )
            try:
                yield client
            finally:
                client._close()
            nursery.cancel_scope.cancel("the client is closed")
