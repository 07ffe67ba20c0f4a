"""The resources that the attempts of an action need.

They are the requests of its container: CPU, memory, GPUs; without a request, the limit. CPUs are
numbers, memory is in bytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec
from flyteidl2.core.tasks_pb2 import Resources

from etcd_actions.errors import InvalidArgument
from etcd_actions.model import ActionObject

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

_CONTAINER: Final = "spec.taskTemplate.container"
_QUANTITY: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)(m|[kMGTPE]|[KMGTPE]i)?")
_FACTORS: Final = {
    "m": 0.001,
    "k": 1e3,
    **{unit: 1000.0 ** (power + 2) for power, unit in enumerate("MGTPE")},
    **{f"{unit}i": 1024.0 ** (power + 1) for power, unit in enumerate("KMGTPE")},
}


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt needs."""

    cpus: float = 0.0
    memory: float = 0.0
    gpus: int = 0

    @classmethod
    def of(cls, action: ActionObject, template: TaskTemplate) -> Needs:
        """The needs of an action's task.

        Raises:
            InvalidArgument: A quantity cannot be read; the field is named.
        """
        resources = template.container.resources
        found: dict[int, float] = {}
        for field, entries in (("limits", resources.limits), ("requests", resources.requests)):
            for entry in entries:
                found[entry.name] = quantity(entry.value, f"{_CONTAINER}.resources.{field}")
        return cls(
            cpus=found.get(Resources.CPU, 0.0),
            memory=found.get(Resources.MEMORY, 0.0),
            gpus=int(found.get(Resources.GPU, 0.0)),
        )


NO_NEEDS: Final = Needs()


def quantity(text: str, field: str) -> float:
    """A quantity of Kubernetes, such as ``500m`` or ``2Gi``, as a number.

    Raises:
        InvalidArgument: It is none; ``field`` is named.
    """
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(field, f"{text[:80]!r} is no quantity: give one such as 500m or 2Gi")
    return float(found[1]) * _FACTORS.get(found[2] or "", 1.0)
