"""The namespace of each project and domain, by a template."""

from __future__ import annotations

import pytest

from etcd_actions.errors import InvalidArgument
from etcd_actions.model import ActionId, Keyspace, NamespaceTemplate
from tests.support.table import table

ROOT = ActionId("p", "d", "r1", "a0")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{project}-{domain}", "flytesnacks-development"),
        ("{{ project }}-{{ domain }}", "flytesnacks-development"),
        ("{{project}}-{domain}", "flytesnacks-development"),
        ("{domain}", "development"),
        ("myorg-{project}-{domain}", "myorg-flytesnacks-development"),
        ("{project}", "flytesnacks"),
    ],
)
def test_the_placeholders_are_flytes(text: str, expected: str) -> None:
    """Those of Flyte's namespace mapping, in its spelling, too."""
    assert NamespaceTemplate(text).namespace_of("flytesnacks", "development") == expected


@table(
    ("text", "word"),
    [
        ("flyte", "neither {project} nor {domain}"),
        ("", "neither"),
        ("{org}-{project}", "{org}"),
        ("{project}-{run}", "{run}"),
        ("{project}/{domain}", "which is not valid"),
        ("-{project}", "which is not valid"),
        ("{project}.{domain}", "which is not valid"),
        ("X{project}", "which is not valid"),
        ("{project}{", "which is not valid"),
        ("{project}-" + "x" * 62, "which is not valid"),
        ("{project}\n", "which is not valid"),
    ],
)
def test_what_makes_no_namespaces_is_refused(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        NamespaceTemplate(text)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("project", "domain", "field"),
    [
        ("My_Project", "d", "action_id.run.project"),
        ("p", "D", "action_id.run.domain"),
        ("p" * 40, "d" * 40, "action_id.run.project"),
        ("-p", "d", "action_id.run.project"),
        ("p", "é", "action_id.run.domain"),
    ],
)
def test_a_project_that_makes_no_namespace_is_named(project: str, domain: str, field: str) -> None:
    template = NamespaceTemplate("{project}-{domain}")
    with pytest.raises(InvalidArgument) as caught:
        template.namespace_of(project, domain)
    assert caught.value.field == field
    assert "{project}-{domain}" in str(caught.value)


def test_a_value_with_braces_is_no_template_of_its_own() -> None:
    template = NamespaceTemplate("{project}-{domain}")
    with pytest.raises(InvalidArgument):
        template.namespace_of("{domain}", "d")


def test_templates_that_mean_the_same_are_equal() -> None:
    assert NamespaceTemplate("{{ project }}") == NamespaceTemplate("{project}")
    assert NamespaceTemplate("{project}") != NamespaceTemplate("{domain}")


def test_all_keys_of_an_action_are_in_its_namespace() -> None:
    keys = Keyspace(b"/x/", template=NamespaceTemplate("{project}-{domain}"))
    assert keys.namespace is None
    assert keys.task_action(ROOT) == b"/x/p-d/r1-a0"
    assert keys.trace(ROOT) == b"/etcd-actions/x/traces/p-d/r1-a0"
    assert keys.abort(ROOT) == b"/etcd-actions/x/aborts/p-d/r1-a0"
    assert keys.claim(ROOT) == b"/etcd-actions/x/claims/p-d/r1-a0"
    assert keys.of(ROOT).run_prefixes("r1")[0] == b"/x/p-d/r1-"
    assert keys.below(keys.prefix) == b"/x/"
    assert Keyspace(b"/x/", "n").below(b"/x/") == b"/x/n/"
    with pytest.raises(ValueError, match="project and domain"):
        keys.run_prefixes("r1")
