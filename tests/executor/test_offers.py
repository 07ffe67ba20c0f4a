"""What tasks need, and whether offers are enough."""

from __future__ import annotations

import msgspec
import pytest
from flyteidl2.core.tasks_pb2 import Resources, TaskTemplate

from etcd_actions.errors import InvalidArgument
from etcd_actions.executor.offers import LABELS, Needs, Offer, quantity
from etcd_actions.model import (
    ANNOTATION_QUEUE,
    ANNOTATION_RUN_QUEUE,
    ActionObject,
    ObjectMeta,
    TaskActionSpec,
)

OFFER = Offer(slots=4, cpus=4, memory=1024.0**3, gpus=1, pools=("default", "big"))


def an_action(**annotations: str) -> ActionObject:
    names = {"own": ANNOTATION_QUEUE, "run": ANNOTATION_RUN_QUEUE}
    noted = {names[name]: text for name, text in annotations.items()}
    meta = ObjectMeta("r1-a0", "flyte", "uid", 1, "2026-11-23T16:00:00Z", annotations=noted)
    return ActionObject.new(meta, TaskActionSpec("p", "d", "r1", "a0"))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", 0.5),
        ("2", 2.0),
        ("1.5", 1.5),
        ("1Ki", 1024.0),
        ("2Gi", 2 * 1024.0**3),
        ("3M", 3e6),
        ("1k", 1e3),
        ("1Ti", 1024.0**4),
    ],
)
def test_quantities_are_those_of_kubernetes(text: str, number: float) -> None:
    assert quantity(text, "x") == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "two", "-1", "1Gb", "1e3x", "9" * 30])
def test_another_text_names_its_field(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"resources\.limits"):
        quantity(text, "resources.limits")


def test_requests_count_and_without_one_the_limit() -> None:
    template = TaskTemplate()
    resources = template.container.resources
    resources.limits.add(name=Resources.CPU, value="8")
    resources.limits.add(name=Resources.MEMORY, value="1Gi")
    resources.requests.add(name=Resources.CPU, value="2")
    resources.requests.add(name=Resources.GPU, value="1")
    needs = Needs.of(an_action(), template)
    assert (needs.cpus, needs.memory, needs.gpus, needs.pool) == (2.0, 1024.0**3, 1, "default")
    assert OFFER.fits(needs)
    assert needs.flags == "--gpus 1 --cpus 2 --executor-memory 1024MiB"


@pytest.mark.parametrize(
    "needs",
    [
        Needs(cpus=4.5),
        Needs(memory=2 * 1024.0**3),
        Needs(gpus=2),
        Needs(pool="other"),
        Needs(labels={"zone": "a"}),
    ],
)
def test_each_need_counts(needs: Needs) -> None:
    assert not OFFER.fits(needs)
    assert needs.flags.startswith("--")


def test_an_offer_without_limits_has_only_pools_and_labels() -> None:
    ray = Offer(slots=4, cpus=None, memory=None, gpus=None, pools=("ray",))
    assert ray.fits(Needs(cpus=1e6, memory=1e15, gpus=1000, pool="ray"))
    assert not ray.fits(Needs())
    assert not ray.fits(Needs(pool="ray", labels={"zone": "a"}))
    # Other workers read it from etcd.
    assert msgspec.json.decode(msgspec.json.encode(ray), type=Offer) == ray


def test_the_queue_is_the_tasks_own_else_its_runs() -> None:
    template = TaskTemplate()
    assert Needs.of(an_action(run="big"), template).pool == "big"
    assert Needs.of(an_action(run="big", own="gpu"), template).pool == "gpu"


def test_an_accelerator_and_the_containers_config_require_labels() -> None:
    template = TaskTemplate()
    template.extended_resources.gpu_accelerator.device = "nvidia-l4"
    template.container.config.add(key=LABELS, value="zone=a, disk=fast")
    needs = Needs.of(an_action(), template)
    assert needs.labels == {"accelerator": "nvidia-l4", "zone": "a", "disk": "fast"}
    template.container.config.add(key=LABELS, value="zone")
    with pytest.raises(InvalidArgument, match="zone=a"):
        Needs.of(an_action(), template)
