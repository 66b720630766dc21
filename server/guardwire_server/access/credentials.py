"""What a caller shows of himself, before anybody has judged it. Secrets are here, and in no `repr`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from guardwire_server.core.errors import Unauthenticated

MAX_AUTHORIZATION_BYTES = 8192
"""Of the header; gRPC is told to let through twice as much of all metadata together."""

_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
"""The grammar of RFC 6750, section 2.1; the scheme in any case, RFC 9110, section 11.1."""


class NameKind(Enum):
    """Which field of a certificate holds a name; the values are the keys of the access file."""

    DNS = "dns"
    URI = "uri"
    COMMON_NAME = "common_name"


@dataclass(frozen=True, slots=True)
class CertificateName:
    """A name in a client certificate. DNS names are in lower case, since case does not count in them."""

    kind: NameKind
    value: str


@dataclass(frozen=True, slots=True)
class PresentedCredentials:
    """What came with a call: a key or token, and the names in the client certificate that TLS has verified."""

    bearer: str | None = field(default=None, repr=False)
    certificate_names: frozenset[CertificateName] = frozenset()


def certificate_name(kind: NameKind, value: str) -> CertificateName:
    """The name as it is compared."""
    return CertificateName(kind, value.lower() if kind is NameKind.DNS else value)


def read_bearer(authorization: Sequence[str]) -> str | None:
    """The key or token in a call's `authorization` headers; None without any.

    Raises:
        Unauthenticated: There is more than one header, or it is not `Bearer` and a token.
    """
    if not authorization:
        return None
    if len(authorization) > 1:
        raise _malformed(f"there are {len(authorization)} authorization headers, one is allowed")
    (header,) = authorization
    if len(header) > MAX_AUTHORIZATION_BYTES:
        raise _malformed(f"the authorization header has more than {MAX_AUTHORIZATION_BYTES} bytes, the limit")
    match = _BEARER.fullmatch(header.strip(" "))
    if match is None:
        raise _malformed("the authorization header must be `Bearer`, a space, and the key or token")
    return match[1]


def invalid_credential() -> Unauthenticated:
    """The one answer to all credentials that are not valid."""
    return Unauthenticated("INVALID_CREDENTIAL", "", "the credential is not valid")


def _malformed(message: str) -> Unauthenticated:
    return Unauthenticated("MALFORMED_CREDENTIAL", "", message)
