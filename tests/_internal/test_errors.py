"""Errors can be copied and pickled: they cross processes, and are kept."""

from __future__ import annotations

import copy
import inspect
import pickle

from etcd_actions import errors
from tests.support.table import table

SPECIAL: dict[str, errors.EtcdActionsError] = {
    "DecodeError": errors.DecodeError("no object", key=b"k", revision=7, doubtful=True),
    "Compacted": errors.Compacted("gone", compact_revision=5),
    "AnotherAction": errors.AnotherAction("it is another", "no such action"),
    "InvalidArgument": errors.InvalidArgument("field", "too long"),
    "WrongType": errors.WrongType("field", "give an int"),
    "RunServiceActionUnknown": errors.RunServiceActionUnknown("unknown", code=5),
    "RunServiceRejected": errors.RunServiceRejected("no", code=3),
}
KINDS = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, errors.EtcdActionsError)
]


@table("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_copy_is_equal(kind: type[errors.EtcdActionsError]) -> None:
    error = SPECIAL.get(kind.__name__) or kind("message")
    error.add_note("a note")
    for made in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(made) is kind
        assert (str(made), made.args, vars(made)) == (str(error), error.args, vars(error))
