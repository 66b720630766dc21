"""The policies in force, and a version by which they can be compared."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from hashlib import sha256
from types import MappingProxyType
from typing import Self

from guardwire_server.core.policy import BUILT_IN_POLICIES, Policy

DEFAULT_POLICY = "default"
"""The policy of requests that name none."""

Plain = str | float | bool | None | dict[str, "Plain"]


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Policies by name. Immutable: requests that were begun keep their policy when another set comes into force.

    `version` is the SHA-256, in hexadecimal, of everything that the policies say, whatever their order.
    """

    policies: Mapping[str, Policy]
    version: str

    @classmethod
    def of(cls, policies: Iterable[Policy]) -> Self:
        """The set of these policies, in their order; their names differ, and one is `default`."""
        named = MappingProxyType({policy.name: policy for policy in policies})
        if DEFAULT_POLICY not in named:
            raise ValueError(f"there must be a policy named {DEFAULT_POLICY}")
        canonical = json.dumps(_plain(named), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return cls(named, sha256(canonical.encode()).hexdigest())


def built_in_policies() -> PolicySet:
    """The policies of a server whose configuration names none of its own."""
    return PolicySet.of(BUILT_IN_POLICIES)


def _plain(value: object) -> Plain:
    """A value as JSON has it: equal values give equal text."""
    if isinstance(value, Enum):  # before numbers: some are both
        return value.name.lower()
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) + 0.0  # 0, 0.0 and -0.0 are one
    if value is None or isinstance(value, str | bool):
        return value
    raise TypeError(f"a policy holds a {type(value).__name__}")
