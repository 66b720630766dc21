"""The version of the policies in force: the same for the same policies, another one for any other."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from guardwire_server.core.policy import BUILT_IN_POLICIES, Action, Debounce, Policy, Strictness
from guardwire_server.core.policy_set import PolicySet, built_in_policies
from guardwire_server.core.verdict import Category
from guardwire_server.policy_file import load_policies

ACTION_NAMES = st.sampled_from(["allow", "flag", "block"])


def turn_rules(num_categories: int) -> st.SearchStrategy[dict[str, Any]]:
    names = [category.name.lower() for category in Category][:num_categories]
    return st.fixed_dictionaries(
        {},
        optional={
            "unsafe": ACTION_NAMES,
            "controversial": ACTION_NAMES,
            "categories": st.dictionaries(st.sampled_from(names), ACTION_NAMES, max_size=3),
        },
    )


RULES = st.fixed_dictionaries(
    {},
    optional={
        "description": st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8),
        "strictness": st.sampled_from([strictness.value for strictness in Strictness]),
        "debounce": st.sampled_from([debounce.value for debounce in Debounce]),
        "min_probability": st.floats(0, 1, exclude_max=True) | st.just(0),
        "user": turn_rules(9),
        "assistant": turn_rules(8),
        "on_error": st.sampled_from(["flag", "block"]),
        "observe_only": st.booleans(),
    },
)
FILES = st.fixed_dictionaries({"default": RULES}, optional={"a": RULES, "b": RULES})
HYPOTHESIS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policies.yaml"


def load_dict(path: Path, policies: dict[str, Any], **style: Any) -> PolicySet:  # noqa: ANN401 PyYAML's options
    path.write_text(yaml.safe_dump({"version": 1, "policies": policies}, allow_unicode=True, **style))
    return load_policies(path).value


def reversed_keys(value: Any) -> Any:  # noqa: ANN401 what YAML holds
    if isinstance(value, dict):
        return {key: reversed_keys(item) for key, item in reversed(value.items())}
    return value


@given(FILES)
@HYPOTHESIS
def test_order_comments_and_formatting_do_not_change_the_version(path: Path, policies: dict[str, Any]) -> None:
    one = load_dict(path, policies, sort_keys=True)
    assert load_dict(path, reversed_keys(policies), sort_keys=False, default_flow_style=True) == one
    path.write_text(json.dumps({"policies": policies, "version": 1}, ensure_ascii=False) + "\n# a comment\n")
    assert load_policies(path).value == one
    assert len(one.version) == 64
    assert set(one.version) <= set("0123456789abcdef")


@given(FILES, FILES)
@HYPOTHESIS
def test_policies_and_versions_are_equal_together(path: Path, one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = load_dict(path, one), load_dict(path, other)
    assert (first.version == second.version) == (first.policies == second.policies) == (first == second)


@given(FILES, st.data())
@HYPOTHESIS
def test_any_change_changes_the_version(path: Path, policies: dict[str, Any], data: st.DataObject) -> None:
    changed = deepcopy(policies)
    name = data.draw(st.sampled_from(sorted(policies)))
    key, value = data.draw(RULES.filter(bool).flatmap(lambda rules: st.sampled_from(sorted(rules.items(), key=str))))
    changed[name][key] = value
    before, after = load_dict(path, policies), load_dict(path, changed)
    assume(before.policies != after.policies)
    assert before.version != after.version


def test_every_field_of_a_policy_counts() -> None:
    default = Policy("default", "")
    rules = replace(default.user, categories={Category.PII: Action.FLAG})
    others = [
        replace(default, description="x"),
        replace(default, strictness=Strictness.STRICT),
        replace(default, debounce=Debounce.NONE),
        replace(default, min_probability=0.5),
        replace(default, user=rules),
        replace(default, assistant=replace(default.assistant, categories={Category.PII: Action.FLAG})),
        replace(default, user=replace(rules, categories={Category.PII: Action.ALLOW})),
        replace(default, user=replace(default.user, controversial=Action.ALLOW)),
        replace(default, user=replace(default.user, unsafe=Action.BLOCK)),
        replace(default, on_error=Action.FLAG),
        replace(default, observe_only=True),
    ]
    sets = [PolicySet.of([default]), *(PolicySet.of([other]) for other in others)]
    sets += [PolicySet.of([default, replace(default, name=name)]) for name in ("a", "b")]
    assert len({policies.version for policies in sets}) == len(sets)
    assert PolicySet.of([replace(default, min_probability=-0.0)]).version == sets[0].version


def test_the_version_of_the_built_in_policies_follows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = built_in_policies()
    assert before == built_in_policies()
    changed = (replace(BUILT_IN_POLICIES[0], debounce=Debounce.NONE), *BUILT_IN_POLICIES[1:])
    monkeypatch.setattr("guardwire_server.core.policy_set.BUILT_IN_POLICIES", changed)
    assert built_in_policies().version != before.version


def test_a_set_needs_its_default_and_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="default"):
        PolicySet.of(BUILT_IN_POLICIES[1:])
    with pytest.raises(TypeError):
        built_in_policies().policies["default"] = BUILT_IN_POLICIES[1]  # type: ignore[index]
