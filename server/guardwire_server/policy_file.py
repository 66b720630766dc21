"""The policies file: YAML that names policies, as the core's policies.

The file is the whole truth. Where there is one, the built-in policies are not offered beside it: whoever reads it knows
everything that a request can name, and a new version of the server changes nothing that the file spells out.
`deploy/policies.example.yaml` spells out the built-in ones, to be kept or dropped. `default` must be there, since
requests that name no policy get it. A key that is left out has the value that it has in the built-in `default`.

`on_error: allow` lets text pass that nobody judged. Callers are still told that it was not judged, but one that looks
at the action alone would show it; so it needs `allow_unjudged: true` beside it, and that key means nothing else.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator
from pydantic_core.core_schema import ValidationInfo

from guardwire_server.core.policy import Action, Debounce, Policy, Strictness, TurnRules
from guardwire_server.core.policy_set import DEFAULT_POLICY, PolicySet
from guardwire_server.core.verdict import Category
from guardwire_server.reloading import Loaded
from guardwire_server.settings_file import read_settings, suggest
from guardwire_server.settings_schema import schema_of, write_schema

FILE_VERSION = 1
MAX_POLICIES, MAX_DESCRIPTION_CHARACTERS = 256, 500
"""So that GetServerInfo stays well below the 4 MiB that a client takes."""

_NAME = "^[a-z0-9][a-z0-9_-]{0,63}$"
_PROMPT_CATEGORIES = {category.name.lower(): category for category in Category}
_ANSWER_CATEGORIES = {name: category for name, category in _PROMPT_CATEGORIES.items() if name != "jailbreak"}


def load_policies(path: Path) -> Loaded[PolicySet]:
    """Reads a policies file.

    Raises:
        StartupError: A line for each mistake: `FILE:LINE: key.path: what is wrong`.
    """
    content = read_settings(path, PoliciesFile)
    return Loaded(
        PolicySet.of((rules or PolicyRules()).policy(name) for name, rules in content.policies.items()), (path,)
    )


def schema() -> dict[str, Any]:
    """The file's JSON schema, for editors and reviews; `load_policies` takes nothing that it refuses."""
    return schema_of(PoliciesFile)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m guardwire_server.policy_file --schema` writes the schema."""
    return write_schema(PoliciesFile, "guardwire_server.policy_file", arguments)


def _check_name(name: str) -> str:
    if not re.fullmatch(_NAME.removesuffix("$"), name):
        raise ValueError("a policy's name is 1 to 64 of a-z, 0-9, _ and -, and begins with a letter or a digit")
    return name


def _check_version(version: int) -> int:
    if version != FILE_VERSION:
        raise ValueError(f"this server reads version {FILE_VERSION}")
    return version


def _reader_of(categories: dict[str, Category]) -> Callable[[str], Category]:
    def read(name: str) -> Category:
        if name not in categories and name in _PROMPT_CATEGORIES:
            raise ValueError("is a category of prompts only: the models never give it to an answer")
        if name not in categories:
            raise ValueError(f"there is no such category{suggest(name, list(categories))}")
        return categories[name]

    return read


def _refuse_null(value: object) -> object:
    if value is None:
        raise ValueError("must be 'allow', 'flag' or 'block'; to go by strictness, leave the key out")
    return value


def _hide_default(field_schema: dict[str, Any]) -> None:
    del field_schema["default"]  # None, which the file cannot say


def _action(name: str) -> Action:
    return Action[name.upper()]


PolicyName = Annotated[str, AfterValidator(_check_name), WithJsonSchema({"type": "string", "pattern": _NAME})]
ActionName = Literal["allow", "flag", "block"]
OwnAction = Annotated[
    ActionName | None,
    BeforeValidator(_refuse_null),
    WithJsonSchema({"type": "string", "enum": [*get_args(ActionName)]}),
]
PromptCategory = Annotated[
    Category,
    BeforeValidator(_reader_of(_PROMPT_CATEGORIES)),
    WithJsonSchema({"type": "string", "enum": [*_PROMPT_CATEGORIES]}),
]
AnswerCategory = Annotated[
    Category,
    BeforeValidator(_reader_of(_ANSWER_CATEGORIES)),
    WithJsonSchema({"type": "string", "enum": [*_ANSWER_CATEGORIES]}),
]
_CATEGORIES_TEXT = (
    "what is done about unsafe text of a category instead; with strictness strict also controversial text"
)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class _TurnRules(_Strict):
    unsafe: ActionName
    controversial: OwnAction = Field(default=None, json_schema_extra=_hide_default)
    """What is done about controversial text; without this key strictness says."""

    def turn_rules(self, categories: dict[Category, ActionName]) -> TurnRules:
        """The same for the core."""
        return TurnRules(
            unsafe=_action(self.unsafe),
            controversial=_action(self.controversial) if self.controversial else None,
            categories={category: _action(name) for category, name in categories.items()},
        )


class UserRules(_TurnRules):
    """What is done about prompts."""

    unsafe: ActionName = "flag"
    """What is done about unsafe prompts."""
    categories: dict[PromptCategory, ActionName] = Field(default={}, description=_CATEGORIES_TEXT)


class AssistantRules(_TurnRules):
    """What is done about answers."""

    unsafe: ActionName = "block"
    """What is done about unsafe answers."""
    categories: dict[AnswerCategory, ActionName] = Field(default={}, description=_CATEGORIES_TEXT)


class PolicyRules(_Strict):
    """One policy: what is done about what the models say."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"on_error": {"const": "allow"}}, "required": ["on_error"]},
            "then": {"properties": {"allow_unjudged": {"const": True}}, "required": ["allow_unjudged"]},
            "else": {"properties": {"allow_unjudged": {"const": False}}},
        }
    )

    description: str = Field(default="", max_length=MAX_DESCRIPTION_CHARACTERS)
    """For people; `guardwire info` shows it."""
    strictness: Strictness = Strictness.LOOSE
    """How controversial text counts: as safe (loose) or as unsafe (strict)."""
    debounce: Debounce = Debounce.SAME_LEVEL
    """When risky tokens of an answer count: the second of two in a row, both of the same level (same_level), or each of
    any risky level (any_risk); or every one (none)."""
    min_probability: float = Field(default=0.0, ge=0, lt=1, strict=True)
    """How probable a risky level must be, at least; less probable ones count as safe."""
    user: UserRules = Field(default_factory=UserRules)
    assistant: AssistantRules = Field(default_factory=AssistantRules)
    observe_only: bool = Field(default=False, strict=True)
    """Decide, but enforce nothing."""
    allow_unjudged: bool = Field(default=False, strict=True)
    """Must be true beside `on_error: allow`, and nowhere else: text that nobody judged passes."""
    on_error: ActionName = Field(default="block", validate_default=True)
    """What is done about text that could not be judged."""

    @field_validator("on_error")
    @classmethod
    def _check_unjudged(cls, value: str, info: ValidationInfo) -> str:
        is_allowed = info.data.get("allow_unjudged")
        if value == "allow" and is_allowed is False:
            raise ValueError("allow lets text pass that nobody judged: say so with allow_unjudged: true, or use flag")
        if value != "allow" and is_allowed:
            raise ValueError(f"allow_unjudged: true belongs beside on_error: allow, but on_error is {value}")
        return value

    def policy(self, name: str) -> Policy:
        """The same for the core."""
        return Policy(
            name=name,
            description=self.description,
            strictness=self.strictness,
            debounce=self.debounce,
            min_probability=self.min_probability,
            user=self.user.turn_rules(self.user.categories),
            assistant=self.assistant.turn_rules(self.assistant.categories),
            on_error=_action(self.on_error),
            observe_only=self.observe_only,
        )


class PoliciesFile(_Strict):
    """The policies of a Guardwire server."""

    model_config = ConfigDict(title="Guardwire policies")

    version: Annotated[int, AfterValidator(_check_version), WithJsonSchema({"const": FILE_VERSION})] = Field(
        strict=True
    )
    """The version of this format."""
    policies: dict[PolicyName, PolicyRules | None] = Field(
        max_length=MAX_POLICIES, json_schema_extra={"required": [DEFAULT_POLICY], "additionalProperties": False}
    )
    """The policies by name; requests that name none get `default`. One that says nothing is as if it were `{}`."""

    @field_validator("policies")
    @classmethod
    def _check_default(cls, policies: dict[str, PolicyRules | None]) -> dict[str, PolicyRules | None]:
        if DEFAULT_POLICY not in policies:
            raise ValueError(f"there must be a policy named {DEFAULT_POLICY}: requests that name none get it")
        return policies


if __name__ == "__main__":
    sys.exit(main())
