"""The client's names are the contract's names."""

from __future__ import annotations

import enum
import subprocess
import sys
import typing

import pytest

import guardwire
from guardwire import enums
from guardwire.convert.values import optional, required
from guardwire.options import ModerateKeywords, ModerateOptions
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.command import environment

ENUMS = [value for value in vars(enums).values() if isinstance(value, type) and issubclass(value, enum.Enum)]


@pytest.mark.parametrize("kind", [kind for kind in ENUMS if kind.__name__[0] != "_"], ids=lambda kind: kind.__name__)
def test_members_are_those_of_the_contract(kind: type[enum.Enum]) -> None:
    wire = pb.DESCRIPTOR.enum_types_by_name[kind.__name__].values
    prefix = wire[0].name.removesuffix("UNSPECIFIED")
    assert {member.name: member.value for member in kind if member.value > 0} == {
        value.name.removeprefix(prefix): value.number for value in wire if value.number > 0
    }


def test_every_enum_of_the_contract_has_a_twin() -> None:
    assert {kind.__name__ for kind in ENUMS if kind.__name__[0] != "_"} == set(pb.DESCRIPTOR.enum_types_by_name)


def test_ordered_enums_compare_with_their_own_kind_only() -> None:
    assert guardwire.RiskLevel.SAFE < guardwire.RiskLevel.UNSAFE
    assert guardwire.Action.BLOCK >= guardwire.Action.FLAG
    assert max(guardwire.Action) is guardwire.Action.BLOCK
    with pytest.raises(TypeError):
        _ = guardwire.RiskLevel.SAFE < guardwire.Action.BLOCK
    with pytest.raises(TypeError):
        _ = guardwire.RiskLevel.SAFE <= guardwire.Action.BLOCK


def test_unknown_numbers_fail_except_categories() -> None:
    assert optional(enums.RiskLevel, 0) is None
    assert optional(enums.Category, 99) is enums.Category.UNKNOWN
    with pytest.raises(guardwire.ServerFault, match="RiskLevel 9"):
        optional(enums.RiskLevel, 9)
    with pytest.raises(guardwire.ServerFault, match="left out Action"):
        required(enums.Action, 0)


def test_keywords_are_the_options() -> None:
    assert typing.get_type_hints(ModerateKeywords) == typing.get_type_hints(ModerateOptions)


def test_options_go_to_fields_of_their_name() -> None:
    fields = set(pb.StreamOpen.DESCRIPTOR.fields_by_name) - {"conversation", "templated"}
    assert set(ModerateOptions.__dataclass_fields__) == fields | {"token_ids"}


def test_everything_public_exists() -> None:
    assert all(hasattr(guardwire, name) for name in guardwire.__all__)


@pytest.mark.parametrize("module", ["guardwire", "guardwire.v1.moderation_pb2_grpc", "guardwire.cli"])
def test_importing_is_light(module: str) -> None:
    program = (
        f"import {module}, sys, threading; "
        "assert not {'opentelemetry', 'rich', 'tokenizers', 'torch', 'transformers'} & set(sys.modules); "
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment(), timeout=60)
