"""The access file: tenants with their limits, and whose credentials let whom in.

Keys stand in it as their SHA-256 alone. A plain hash is right for them, where a password would need a slow, salted one:
our keys are 256 random bits (access/new_key.py), so there is no dictionary to go through and no list of hashes that
could have been made before, and every call must be checked at once.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from guardwire_server.access.credentials import CertificateName, NameKind, certificate_name
from guardwire_server.access.key_set import read_key_set
from guardwire_server.access.rules import KEY_PREFIX, AccessKey, AccessRules, Tenant, TenantLimits
from guardwire_server.access.web_tokens import TokenRules
from guardwire_server.reloading import Loaded
from guardwire_server.settings_file import read_settings

logger = logging.getLogger(__name__)

MAX_COUNT = 2**31 - 1
MAX_LEEWAY_S = 300.0

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""Of tenants and keys: they stand in logs and metrics."""

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


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Digest = Annotated[str, BeforeValidator(_check_digest), Field(pattern=r"^[0-9a-f]{64}$")]
Moment = Annotated[AwareDatetime, Field(strict=False)]
Algorithm = Annotated[
    Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"],
    BeforeValidator(_check_algorithm),
]


class _Part(BaseModel):
    """A mapping of the file: only known keys, and numbers are no texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class _Limits(_Part):
    max_streams: Count | None = None
    max_classify_calls: Count | None = None
    tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    burst_tokens: Count | None = None
    max_message_bytes: Count | None = None
    max_tokens_per_message: Count | None = None

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        if (self.tokens_per_s is None) != (self.burst_tokens is None):
            raise ValueError("tokens_per_s and burst_tokens: both or neither must be set")
        return self


class _Credential(_Part):
    tenant: Name


class _Key(_Credential):
    id: Name
    sha256: Digest
    expires: Moment | None = None


class _Certificate(_Credential):
    dns: Text | None = None
    uri: Text | None = None
    common_name: Text | None = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if sum(getattr(self, kind.value) is not None for kind in NameKind) != 1:
            raise ValueError("exactly one of dns, uri, common_name must be set")
        return self

    @property
    def name(self) -> CertificateName:
        (name,) = (certificate_name(kind, text) for kind in NameKind if (text := getattr(self, kind.value)) is not None)
        return name


class _Tokens(_Part):
    jwks_file: Text
    issuer: Text
    audience: Text
    tenant_claim: Text = "tenant"
    algorithms: Annotated[list[Algorithm], Field(min_length=1)] = ["RS256", "ES256", "EdDSA"]
    leeway_s: Annotated[float, Field(ge=0, le=MAX_LEEWAY_S)] = 30.0


class _AccessFile(_Part):
    version: Literal[1]
    tenants: Annotated[dict[Name, _Limits | None], Field(min_length=1)]
    keys: list[_Key] = []
    certificates: list[_Certificate] = []
    jwt: _Tokens | None = None

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


def load_access(path: Path) -> Loaded[AccessRules]:
    """Reads the access file, and the key set that it may name, relative to its own directory.

    Raises:
        StartupError: Naming file, line and key of every mistake.
    """
    file = read_settings(path, _AccessFile)
    keys = tuple(AccessKey(key.id, key.tenant, bytes.fromhex(key.sha256), key.expires) for key in file.keys)
    tokens, paths = None, [path]
    if file.jwt:
        key_set_path = path.parent / file.jwt.jwks_file
        paths.append(key_set_path)
        tokens = TokenRules(
            issuer=file.jwt.issuer,
            audience=file.jwt.audience,
            tenant_claim=file.jwt.tenant_claim,
            leeway_s=file.jwt.leeway_s,
            keys=read_key_set(key_set_path, file.jwt.algorithms),
        )
    _warn_of_expired(path, keys)
    rules = AccessRules(
        tenants={name: Tenant(name, _limits(limits)) for name, limits in file.tenants.items()},
        keys=keys,
        certificates={certificate.name: certificate.tenant for certificate in file.certificates},
        tokens=tokens,
    )
    return Loaded(rules, tuple(paths))


def _limits(limits: _Limits | None) -> TenantLimits:
    return TenantLimits(**limits.model_dump()) if limits else TenantLimits()


def _warn_of_expired(path: Path, keys: tuple[AccessKey, ...]) -> None:
    now = datetime.now(UTC)
    for index, key in enumerate(keys):
        if key.expires is not None and key.expires <= now:
            logger.warning("%s: keys.%d: key %s has expired and lets nobody in", path, index, key.id)


def _detail(place: tuple[str | int, ...], text: str) -> InitErrorDetails:
    return {"type": PydanticCustomError("inconsistent", "{text}", {"text": text}), "loc": place, "input": None}


def _unknown_tenants(file: _AccessFile) -> Iterator[Problem]:
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
