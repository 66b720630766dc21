"""The policies file: what it says to the core, how every mistake is told."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from guardwire_server.core.errors import StartupError
from guardwire_server.core.policy import BUILT_IN_POLICIES, Action, Debounce, Policy, Strictness, TurnRules
from guardwire_server.core.policy_set import PolicySet, built_in_policies
from guardwire_server.core.verdict import Category
from guardwire_server.policy_file import MAX_DESCRIPTION_CHARACTERS, MAX_POLICIES, load_policies, schema

PREFIX = "version: 1\npolicies:\n  default: {}\n"
"""What a file begins with, unless a test says otherwise: three good lines."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policies.yaml"


def load(path: Path, text: str) -> PolicySet:
    path.write_text(text)
    loaded = load_policies(path)
    assert loaded.paths == (path,)
    return loaded.value


def schema_refuses(text: str) -> bool:
    return not Draft202012Validator(schema()).is_valid(yaml.safe_load(text))


# --- what a file says --------------------------------------------------------------------------------------------


def test_every_key_reaches_the_core(path: Path) -> None:
    policies = load(
        path,
        """
        version: 1
        policies:
          default: {}
          0-own_1:
            description: "Straße: 1"
            strictness: strict
            debounce: any_risk
            min_probability: 0.25
            user:
              unsafe: allow
              controversial: block
              categories: {jailbreak: block, pii: flag}
            assistant:
              unsafe: flag
              controversial: allow
              categories: {violent: block}
            on_error: flag
            observe_only: true
        """,
    )
    assert list(policies.policies) == ["default", "0-own_1"]
    assert policies.policies["0-own_1"] == Policy(
        name="0-own_1",
        description="Straße: 1",
        strictness=Strictness.STRICT,
        debounce=Debounce.ANY_RISK,
        min_probability=0.25,
        user=TurnRules(Action.ALLOW, Action.BLOCK, {Category.JAILBREAK: Action.BLOCK, Category.PII: Action.FLAG}),
        assistant=TurnRules(Action.FLAG, Action.ALLOW, {Category.VIOLENT: Action.BLOCK}),
        on_error=Action.FLAG,
        observe_only=True,
    )


def test_a_policy_that_says_nothing_is_the_cores(path: Path) -> None:
    assert load(path, PREFIX).policies == {"default": Policy("default", "")}
    assert replace(BUILT_IN_POLICIES[0], description="") == Policy("default", "")


def test_a_policy_may_have_nothing_behind_its_name(path: Path) -> None:
    text = "version: 1\npolicies:\n  default:\n  own: ~\n"
    assert load(path, text).policies == {name: Policy(name, "") for name in ("default", "own")}
    assert load(path, text).version == load(path, PREFIX + "  own: {}\n").version
    assert not schema_refuses(text)


def test_the_file_is_the_whole_truth(path: Path) -> None:
    assert list(load(path, PREFIX + "  own: {}\n").policies) == ["default", "own"]
    assert list(built_in_policies().policies) == ["default", "strict", "observe"]


def test_every_category_can_be_named(path: Path) -> None:
    names = [category.name.lower() for category in Category]
    user, assistant = (dict.fromkeys(names[:number], "block") for number in (9, 8))
    policies = {"default": {"user": {"categories": user}, "assistant": {"categories": assistant}}}
    default = load(path, yaml.safe_dump({"version": 1, "policies": policies})).policies["default"]
    assert default.user.categories == dict.fromkeys(Category, Action.BLOCK)
    assert set(Category) - set(default.assistant.categories) == {Category.JAILBREAK}


def test_text_that_nobody_judged_passes_only_if_the_file_says_so_twice(path: Path) -> None:
    policies = load(path, PREFIX + "  open: {on_error: allow, allow_unjudged: true}\n").policies
    assert {name: policy.on_error for name, policy in policies.items()} == {
        "default": Action.BLOCK,
        "open": Action.ALLOW,
    }


# --- mistakes ----------------------------------------------------------------------------------------------------

ACTIONS = "must be 'allow', 'flag' or 'block'"
NAME = "a policy's name is 1 to 64 of a-z, 0-9, _ and -, and begins with a letter or a digit"
MISTAKES = [
    # of the file
    ("policies: {default: {}}\n", "1: version: is missing"),
    ("version: 2\npolicies: {default: {}}\n", "1: version: this server reads version 1"),
    ("version: true\npolicies: {default: {}}\n", "1: version: must be a valid integer"),
    ("version: '1'\npolicies: {default: {}}\n", "1: version: must be a valid integer"),
    ("version: 1\n", "1: policies: is missing"),
    ("version: 1\npolicies:\n", "2: policies: must be a mapping"),
    ("version: 1\npolicies: [default]\n", "2: policies: must be a mapping"),
    ("version: 1\npolices: {}\npolicies: {default: {}}\n", "2: polices: there is no such key; did you mean policies?"),
    (
        "version: 1\npolicies:\n  strict: {}\n",
        "2: policies: there must be a policy named default: requests that name none get it",
    ),
    (
        "version: 1\npolicies: {}\n",
        "2: policies: there must be a policy named default: requests that name none get it",
    ),
    (
        PREFIX + "".join(f"  p{number}: {{}}\n" for number in range(MAX_POLICIES)),
        "2: policies: must have at most 256 items, not more",
    ),
    # of a policy
    (PREFIX + "  Own: {}\n", f"4: policies.Own: {NAME}"),
    (PREFIX + "  -own: {}\n", f"4: policies.-own: {NAME}"),
    (PREFIX + "  '': {}\n", f'4: policies."": {NAME}'),
    (PREFIX + f"  {'a' * 65}: {{}}\n", f"4: policies.{'a' * 64}…: {NAME}"),
    (PREFIX + "  own: strict\n", "4: policies.own: must be a mapping"),
    (
        PREFIX + "  own:\n    strictnes: loose\n",
        "5: policies.own.strictnes: there is no such key; did you mean strictness?",
    ),
    (PREFIX + "  own:\n    strictness: hard\n", "5: policies.own.strictness: must be 'loose' or 'strict'"),
    (PREFIX + "  own:\n    debounce: never\n", "5: policies.own.debounce: must be 'same_level', 'any_risk' or 'none'"),
    (PREFIX + "  own:\n    debounce:\n", "5: policies.own.debounce: must be 'same_level', 'any_risk' or 'none'"),
    (PREFIX + "  own:\n    description: 12\n", "5: policies.own.description: must be text; a number"),
    (
        PREFIX + f"  own:\n    description: {'x' * (MAX_DESCRIPTION_CHARACTERS + 1)}\n",
        "5: policies.own.description: must have at most 500 characters",
    ),
    (PREFIX + "  own:\n    min_probability: 60\n", "5: policies.own.min_probability: must be less than 1"),
    (PREFIX + "  own:\n    min_probability: 1\n", "5: policies.own.min_probability: must be less than 1"),
    (
        PREFIX + "  own:\n    min_probability: -0.1\n",
        "5: policies.own.min_probability: must be greater than or equal to 0",
    ),
    (PREFIX + "  own:\n    min_probability: 60%\n", "5: policies.own.min_probability: must be a valid number"),
    (PREFIX + "  own:\n    min_probability: '0.6'\n", "5: policies.own.min_probability: must be a valid number"),
    (PREFIX + "  own:\n    min_probability: true\n", "5: policies.own.min_probability: must be a valid number"),
    (PREFIX + "  own:\n    observe_only: 'yes'\n", "5: policies.own.observe_only: must be a valid boolean"),
    (PREFIX + "  own:\n    on_error: pass\n", f"5: policies.own.on_error: {ACTIONS}"),
    (
        PREFIX + "  own:\n    on_error: allow\n",
        "5: policies.own.on_error: allow lets text pass that nobody judged: "
        "say so with allow_unjudged: true, or use flag",
    ),
    (
        PREFIX + "  own:\n    allow_unjudged: false\n    on_error: allow\n",
        "6: policies.own.on_error: allow lets text pass that nobody judged: "
        "say so with allow_unjudged: true, or use flag",
    ),
    (
        PREFIX + "  own:\n    on_error: flag\n    allow_unjudged: true\n",
        "5: policies.own.on_error: allow_unjudged: true belongs beside on_error: allow, but on_error is flag",
    ),
    (
        PREFIX + "  own:\n    allow_unjudged: true\n",
        "4: policies.own: allow_unjudged: true belongs beside on_error: allow, but on_error is block",
    ),
    (
        PREFIX + "  own:\n    allow_unjudged: 'yes'\n    on_error: allow\n",
        "5: policies.own.allow_unjudged: must be a valid boolean",
    ),
    # of a turn
    (PREFIX + "  own:\n    user:\n", "5: policies.own.user: must be a mapping"),
    (PREFIX + "  own:\n    user: block\n", "5: policies.own.user: must be a mapping"),
    (PREFIX + "  own:\n    user:\n      unsafe: deny\n", f"6: policies.own.user.unsafe: {ACTIONS}"),
    (PREFIX + "  own:\n    user:\n      unsafe: BLOCK\n", f"6: policies.own.user.unsafe: {ACTIONS}"),
    (
        PREFIX + "  own:\n    assistant:\n      controversial:\n",
        f"6: policies.own.assistant.controversial: {ACTIONS}; to go by strictness, leave the key out",
    ),
    (
        PREFIX + "  own:\n    assistant:\n      controversial: 1\n",
        f"6: policies.own.assistant.controversial: {ACTIONS}",
    ),
    (
        PREFIX + "  own:\n    user:\n      safe: block\n",
        "6: policies.own.user.safe: there is no such key; did you mean unsafe?",
    ),
    (PREFIX + "  own:\n    user:\n      categories:\n", "6: policies.own.user.categories: must be a mapping"),
    (
        PREFIX + "  own:\n    user:\n      categories:\n        violence: block\n",
        "7: policies.own.user.categories.violence: there is no such category; did you mean violent?",
    ),
    (
        PREFIX + "  own:\n    user:\n      categories:\n        VIOLENT: block\n",
        "7: policies.own.user.categories.VIOLENT: there is no such category; there are violent, sexual_content, ",
    ),
    (
        PREFIX + "  own:\n    user:\n      categories:\n        pii: ban\n",
        f"7: policies.own.user.categories.pii: {ACTIONS}",
    ),
    (
        PREFIX + "  own:\n    assistant:\n      categories:\n        pii: flag\n        jailbreak: block\n",
        "8: policies.own.assistant.categories.jailbreak: is a category of prompts only: "
        "the models never give it to an answer",
    ),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES)
def test_one_mistake(path: Path, text: str, told: str) -> None:
    with pytest.raises(StartupError) as raised:
        load(path, text)
    (line,) = raised.value.message.split("\n")
    assert line.startswith(f"{path}:{told}")
    assert line == f"{path}:{told}" or told.endswith(("a number", ", "))  # the rest is tested elsewhere


def test_a_name_with_a_line_break(path: Path) -> None:
    with pytest.raises(StartupError) as raised:  # the schema's `$` lets it pass in some languages
        load(path, PREFIX + '  "own\\n": {}\n')
    assert raised.value.message == f'{path}:4: policies."own\\n": {NAME}'


@pytest.mark.parametrize("text", [text for text, _ in MISTAKES])
def test_the_schema_refuses_the_same(text: str) -> None:
    assert schema_refuses(text)


def test_all_mistakes_are_told(path: Path) -> None:
    with pytest.raises(StartupError) as raised:
        load(
            path,
            "version: 3\npolicies:\n  strict:\n    on_error: allow\n    user: {unsafe: deny}\n  strict: {}\n"
            "  Own:\n    assistant:\n      categories: {jailbreak: block, pii: ban}\n",
        )
    assert [line.removeprefix(f"{path}:").split(": ", 2)[:2] for line in raised.value.message.split("\n")] == [
        ["1", "version"],
        ["4", "policies.strict.on_error"],
        ["5", "policies.strict.user.unsafe"],
        ["6", "policies.strict"],
        ["7", "policies.Own"],
        ["9", "policies.Own.assistant.categories.jailbreak"],
        ["9", "policies.Own.assistant.categories.pii"],
    ]
