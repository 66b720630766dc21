"""What an access file may say, and its JSON schema."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from guardwire_server.access.credentials import CertificateName, NameKind, certificate_name
from guardwire_server.access.rules import KEY_PREFIX
from guardwire_server.settings_schema import schema_of, write_schema

MAX_COUNT = 2**31 - 1
MAX_LEEWAY_S = 300.0

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""Of tenants and keys: they stand in logs and metrics."""

_MOMENT = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
"""RFC 3339, section 5.6. The schema's pattern too, since editors need not look at its `format`."""

Problem = tuple[tuple[str | int, ...], str]
"""A place in the file and what is wrong there."""

T = TypeVar("T")


def _check_digest(value: object) -> object:
    if isinstance(value, str) and value.startswith(KEY_PREFIX):
        raise ValueError("this is a key, not its SHA-256; it has been in a file now, so make another one")
    return value


def _check_algorithm(value: object) -> object:
    if isinstance(value, str) and (value.lower() == "none" or value.startswith("HS")):
        raise ValueError("must be asymmetric: whoever can check tokens of this algorithm can forge them")
    return value


def _check_version(value: object) -> object:
    if isinstance(value, bool):  # which Python takes for 1
        raise ValueError("must be 1")
    return value


def _read_moment(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """Takes less than pydantic, for which numbers are moments too."""
    moment = read(value)
    if not (isinstance(value, str) and re.fullmatch(_MOMENT.removesuffix("$"), value)):
        raise ValueError("must be written as 2030-01-31T12:00:00Z or 2030-01-31T12:00:00+01:00")
    return moment


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), BeforeValidator(_check_digest)]
Moment = Annotated[
    AwareDatetime,
    Field(strict=False),
    WrapValidator(_read_moment),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": _MOMENT}),
]
Algorithm = Annotated[
    Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"],
    BeforeValidator(_check_algorithm),
]


def _is_there(key: str, content: dict[str, Any]) -> dict[str, Any]:
    """The schema of a mapping that has the key with such a value."""
    return {"properties": {key: content}, "required": [key]}


class _Part(BaseModel):
    """A mapping of the file: only known keys, and numbers are no texts."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class Limits(_Part):
    """What a tenant may use; what is left out is the server's own setting, which holds besides in any case."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": _is_there("tokens_per_s", {"type": "number"}),
            "then": _is_there("burst_tokens", {"type": "integer"}),
            "else": {"properties": {"burst_tokens": {"type": "null"}}},
        }
    )

    max_streams: Count | None = None
    """Streams open at once, each stream of a ModerateStreams call included."""
    max_classify_calls: Count | None = None
    """Classify calls waiting or running."""
    tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Tokens pushed in the long run; needs burst_tokens."""
    burst_tokens: Count | None = None
    """Tokens pushed at once, at least those of the largest prompt; needs tokens_per_s."""
    max_message_bytes: Count | None = None
    """Bytes of text in one message."""
    max_tokens_per_message: Count | None = None
    """Token ids in one message."""

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        if (self.tokens_per_s is None) != (self.burst_tokens is None):
            raise ValueError("tokens_per_s and burst_tokens: both or neither must be set")
        return self


class _Credential(_Part):
    tenant: Name
    """Whose it is: a name below tenants."""


class Key(_Credential):
    """A key; `guardwire-server new-key` makes one, and its entry."""

    id: Name
    """Its name in the log."""
    sha256: Digest
    """The SHA-256 of the key, never the key itself."""
    expires: Moment | None = None
    """From when on it lets nobody in."""


class Certificate(_Credential):
    """A client certificate, by exactly one of its names."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [_is_there(kind.value, {"type": "string"}) for kind in NameKind]}
    )

    dns: Text | None = None
    """A DNS name."""
    uri: Text | None = None
    """A URI, for instance a SPIFFE id."""
    common_name: Text | None = None
    """The subject's common name."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if sum(getattr(self, kind.value) is not None for kind in NameKind) != 1:
            raise ValueError("exactly one of dns, uri, common_name must be set")
        return self

    @property
    def name(self) -> CertificateName:
        """The name by which the tenant is found."""
        (name,) = (certificate_name(kind, text) for kind in NameKind if (text := getattr(self, kind.value)) is not None)
        return name


class Tokens(_Part):
    """Which JSON web tokens let in."""

    jwks_file: Text
    """The issuer's key set (RFC 7517), relative to this file."""
    issuer: Text
    """What `iss` must be."""
    audience: Text
    """What `aud` must hold."""
    tenant_claim: Text = "tenant"
    """The claim that holds the tenant's name."""
    algorithms: Annotated[list[Algorithm], Field(min_length=1)] = ["RS256", "ES256", "EdDSA"]
    """What a token may be signed with."""
    leeway_s: Annotated[float, Field(ge=0, le=MAX_LEEWAY_S)] = 30.0
    """By how many seconds clocks may differ."""


class AccessFile(_Part):
    """Who may call a Guardwire server, and how much."""

    model_config = ConfigDict(
        title="Guardwire access",
        json_schema_extra={
            "anyOf": [
                _is_there("keys", {"minItems": 1}),
                _is_there("certificates", {"minItems": 1}),
                _is_there("jwt", {"type": "object"}),
            ]
        },
    )

    version: Annotated[Literal[1], BeforeValidator(_check_version)]
    """The version of this format."""
    tenants: dict[Name, Limits | None] = Field(min_length=1, json_schema_extra={"additionalProperties": False})
    """The tenants by name, which stands in metrics, traces and logs; with or without limits."""
    keys: list[Key] = []
    """The keys that let somebody in."""
    certificates: list[Certificate] = []
    """The client certificates that let somebody in."""
    jwt: Tokens | None = None
    """The JSON web tokens that let somebody in."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = [
            *_unknown_tenants(self),
            *_repeated("keys", "id", self.keys, lambda key: key.id),
            *_repeated("keys", "sha256", self.keys, lambda key: key.sha256),
            *_repeated("certificates", "", self.certificates, lambda certificate: certificate.name),
        ]
        if not (self.keys or self.certificates or self.jwt):
            problems.append(((), "keys, certificates, jwt: at least one is needed, or nobody is let in"))
        if problems:
            raise ValidationError.from_exception_data("access file", [_detail(*problem) for problem in problems])
        return self


def schema() -> dict[str, Any]:
    """The file's JSON schema, for editors and reviews; `access.load.load_access` takes nothing that it refuses.

    It refuses more, which no schema can say: a tenant that is not there, an entry that repeats another's id, key or
    name, a moment that is not in the calendar, `5.0` for a whole number, and what is wrong with the key set.
    """
    return schema_of(AccessFile)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m guardwire_server.access.access_file --schema` writes the schema."""
    return write_schema(AccessFile, "guardwire_server.access.access_file", arguments)


def _detail(place: tuple[str | int, ...], text: str) -> InitErrorDetails:
    return {"type": PydanticCustomError("inconsistent", "{text}", {"text": text}), "loc": place, "input": None}


def _unknown_tenants(file: AccessFile) -> Iterator[Problem]:
    references: tuple[tuple[str, Sequence[_Credential]], ...] = (
        ("keys", file.keys),
        ("certificates", file.certificates),
    )
    for section, entries in references:
        for index, entry in enumerate(entries):
            if entry.tenant not in file.tenants:
                yield (section, index, "tenant"), f"there is no tenant {entry.tenant}"


def _repeated(section: str, field: str, entries: Sequence[T], identity: Callable[[T], object]) -> Iterator[Problem]:
    first: dict[object, int] = {}
    for index, entry in enumerate(entries):
        known = first.setdefault(identity(entry), index)
        if known != index:
            place = (section, index, field) if field else (section, index)
            yield place, f"the same as in {section}.{known}"


if __name__ == "__main__":
    sys.exit(main())
