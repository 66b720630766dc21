"""Who may call: tenants with their limits, and the credentials that belong to each of them.

A refusal tells a caller nothing that his credential does not: an unknown, a mistyped and an expired one get the same
answer. The server's log tells the operator more.
"""

import hashlib
import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from guardwire_server.access.credentials import CertificateName, PresentedCredentials, invalid_credential
from guardwire_server.access.web_tokens import TokenRules
from guardwire_server.core.errors import PermissionDenied, Unauthenticated

logger = logging.getLogger(__name__)

KEY_PREFIX = "gw_"
"""What our keys begin with: scanners for secrets find them, and no web token looks like one."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may use; None: what the server lets anybody use, which holds besides in any case.

    `tokens_per_s` and `burst_tokens` (how many at once) go together.
    """

    max_streams: int | None = None
    max_classify_calls: int | None = None
    tokens_per_s: float | None = None
    burst_tokens: int | None = None
    max_message_bytes: int | None = None
    max_tokens_per_message: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody who may call."""

    name: str
    limits: TenantLimits = TenantLimits()


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key, by its SHA-256; `id` is its name in the log."""

    id: str
    tenant: str
    digest: bytes = field(repr=False)
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The whole access file. Immutable. Invariant: every tenant that is named anywhere is in `tenants`."""

    tenants: Mapping[str, Tenant]
    keys: tuple[AccessKey, ...] = ()
    certificates: Mapping[CertificateName, str] = field(default_factory=dict)
    tokens: TokenRules | None = None

    def identify(self, presented: PresentedCredentials, now: datetime) -> Tenant:
        """Whose credential it is.

        A key or token decides alone where there is one: a certificate may be that of a gateway which many tenants
        share, and does not make a bad key good.

        Args:
            presented: What came with the call.
            now: The time, for the expiry of keys; that of tokens is judged by the system's clock.

        Raises:
            Unauthenticated: There is no credential, or it is not valid.
            PermissionDenied: It is valid, but belongs to no tenant here.
        """
        if presented.bearer is not None:
            if presented.bearer.startswith(KEY_PREFIX):
                return self._owner_of_key(presented.bearer, now)
            if self.tokens is None:
                raise invalid_credential()
            return self._tenant(self.tokens.tenant_name(presented.bearer))
        if presented.certificate_names and self.certificates:
            return self._owner_of_certificate(presented.certificate_names)
        raise Unauthenticated(
            "CREDENTIAL_REQUIRED",
            "",
            "a credential is required: `authorization: Bearer` with a key or token, or a client certificate",
        )

    def _owner_of_key(self, bearer: str, now: datetime) -> Tenant:
        """Compares with every key to the end, so that the time it takes says nothing about any of them."""
        digest, found = hashlib.sha256(bearer.encode()).digest(), None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        if found is None:
            raise invalid_credential()
        if found.expires is not None and found.expires <= now:
            logger.info("refused: key %s of tenant %s has expired", found.id, found.tenant)
            raise invalid_credential()
        return self.tenants[found.tenant]

    def _owner_of_certificate(self, names: frozenset[CertificateName]) -> Tenant:
        owners = {self.certificates[name] for name in names if name in self.certificates}
        if len(owners) > 1:
            raise PermissionDenied(
                "AMBIGUOUS_CERTIFICATE", "", "the client certificate belongs to more than one tenant"
            )
        return self._tenant(next(iter(owners), None))

    def _tenant(self, name: str | None) -> Tenant:
        tenant = None if name is None else self.tenants.get(name)
        if tenant is None:
            raise PermissionDenied("UNKNOWN_TENANT", "", "the credential belongs to no tenant of this server")
        return tenant
