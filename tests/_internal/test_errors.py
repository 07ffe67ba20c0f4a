"""Errors can be copied and pickled: they cross processes, and are kept."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from importlib import import_module

from etcd_actions import errors
from etcd_actions.storage.stored_form import LaterForm
from tests.support.table import table

# The modules with errors of their own.
for module in (
    "_internal.secret_sources",
    "_internal.untrusted_files",
    "blobs.protocol",
    "blobs.searched_files",
    "blobs.signing",
    "cli.service_client",
    "embedded.embedded_etcd",
    "record.checkpoint",
    "record.leader_calls",
):
    import_module(f"etcd_actions.{module}")

SPECIAL: dict[str, errors.EtcdActionsError] = {
    "DecodeError": errors.DecodeError("no object", key=b"k", revision=7, doubtful=True),
    "Compacted": errors.Compacted("gone", compact_revision=5),
    "AnotherAction": errors.AnotherAction("it is another", "no such action"),
    "InvalidArgument": errors.InvalidArgument("field", "too long"),
    "WrongType": errors.WrongType("field", "give an int"),
    "RunServiceActionUnknown": errors.RunServiceActionUnknown("unknown", code=5),
    "LaterForm": LaterForm("a later version", key=b"k", revision=7),
    "RunServiceRejected": errors.RunServiceRejected("no", code=3),
}


def kinds(of: type[errors.EtcdActionsError]) -> Iterator[type[errors.EtcdActionsError]]:
    if of.__module__.startswith("etcd_actions."):
        yield of
    for each in of.__subclasses__():
        yield from kinds(each)


KINDS = sorted(set(kinds(errors.EtcdActionsError)), key=lambda kind: kind.__name__)


@table("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_copy_is_equal(kind: type[errors.EtcdActionsError]) -> None:
    error = SPECIAL.get(kind.__name__) or kind("message")
    error.add_note("a note")
    for made in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(made) is kind
        assert (str(made), made.args, vars(made)) == (str(error), error.args, vars(error))
