"""What the attempts of an action need, and what a worker offers for them.

A task's needs are the requests of its container (CPU, memory, GPUs; without a request, the limit),
its accelerator, its queue, and the labels that it requires. CPUs are numbers, memory is in bytes.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import msgspec
from flyteidl2.core.tasks_pb2 import Resources

from etcd_actions.errors import InvalidArgument
from etcd_actions.model import ANNOTATION_QUEUE, ANNOTATION_RUN_QUEUE, ActionObject

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

DEFAULT_POOL: Final = "default"
"""The pool of an action without a queue."""
LABELS: Final = "etcd-actions.io/worker-labels"
"""A key of a container's ``config``: required labels of a worker, ``KEY=VALUE`` between commas."""
ACCELERATOR: Final = "accelerator"
"""The label of a worker that has the device of a task's ``extended_resources``."""

_CONTAINER: Final = "spec.taskTemplate.container"
_QUANTITY: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)(m|[kMGTPE]|[KMGTPE]i)?")
_FACTORS: Final = {
    "m": 0.001,
    "k": 1e3,
    **{unit: 1000.0 ** (power + 2) for power, unit in enumerate("MGTPE")},
    **{f"{unit}i": 1024.0 ** (power + 1) for power, unit in enumerate("KMGTPE")},
}


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """The CPUs, bytes of memory, GPUs, pool and labels that one attempt needs."""

    cpus: float = 0.0
    memory: float = 0.0
    gpus: int = 0
    pool: str = DEFAULT_POOL
    labels: dict[str, str] = {}

    @classmethod
    def of(cls, action: ActionObject, template: TaskTemplate) -> Needs:
        """The needs of an action's task.

        Raises:
            InvalidArgument: A quantity or a label cannot be read; the field is named.
        """
        resources = template.container.resources
        found: dict[int, float] = {}
        for field, entries in (("limits", resources.limits), ("requests", resources.requests)):
            for entry in entries:
                found[entry.name] = quantity(entry.value, f"{_CONTAINER}.resources.{field}")
        labels, noted = _labels(template), action.metadata.annotations
        queue = noted.get(ANNOTATION_QUEUE) or noted.get(ANNOTATION_RUN_QUEUE)
        if device := template.extended_resources.gpu_accelerator.device:
            labels.setdefault(ACCELERATOR, device)
        return cls(
            cpus=found.get(Resources.CPU, 0.0),
            memory=found.get(Resources.MEMORY, 0.0),
            gpus=int(found.get(Resources.GPU, 0.0)),
            pool=queue or DEFAULT_POOL,
            labels=labels,
        )

    @property
    def flags(self) -> str:
        """The flags of a worker that the attempt fits."""
        flags = [f"--pool {self.pool}"] if self.pool != DEFAULT_POOL else []
        flags += [f"--label {key}={value}" for key, value in self.labels.items()]
        flags += [f"--gpus {self.gpus}"] if self.gpus else []
        flags += [f"--cpus {self.cpus:g}"] if self.cpus else []
        flags += [f"--executor-memory {_mebibytes(self.memory)}"] if self.memory else []
        return " ".join(flags)


NO_NEEDS: Final = Needs()


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """The resources that a worker's settings offer to all attempts together; units as in Needs.

    None is no limit: the engine to which the worker submits its attempts has limits of its own.
    """

    slots: int
    cpus: float | None
    memory: float | None
    gpus: int | None = 0
    pools: tuple[str, ...] = (DEFAULT_POOL,)
    labels: dict[str, str] = {}

    def fits(self, needs: Needs) -> bool:
        """Whether an attempt can run on a worker that runs nothing else."""
        return (
            needs.pool in self.pools
            and needs.labels.items() <= self.labels.items()
            and is_within(needs.gpus, self.gpus)
            and is_within(needs.cpus, self.cpus)
            and is_within(needs.memory, self.memory)
        )


def is_within(need: float, limit: float | None) -> bool:
    """Whether a limit of an offer, None for none, is enough."""
    return limit is None or need <= limit


def quantity(text: str, field: str) -> float:
    """A quantity of Kubernetes, such as ``500m`` or ``2Gi``, as a number.

    Raises:
        InvalidArgument: It is none; ``field`` is named.
    """
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(
            field, f"{text[:80]!r} is not a quantity: give one such as 500m or 2Gi"
        )
    return float(found[1]) * _FACTORS.get(found[2] or "", 1.0)


def _mebibytes(memory: float) -> str:
    return f"{math.ceil(memory / 1024**2)}MiB"


def _labels(template: TaskTemplate) -> dict[str, str]:
    labels: dict[str, str] = {}
    for entry in template.container.config:
        if entry.key != LABELS:
            continue
        for each in entry.value.split(","):
            key, equals, value = each.strip().partition("=")
            if not key or not equals:
                raise InvalidArgument(
                    f"{_CONTAINER}.config[{LABELS}]",
                    f"{each[:80]!r} is not a label: give one such as zone=a",
                )
            labels[key] = value
    return labels
