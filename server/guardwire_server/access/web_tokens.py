"""JSON web tokens (RFC 7519) as credentials, checked as RFC 8725 advises.

What a token says of itself decides nothing before its signature is checked. The key that it names decides which
algorithms may have signed it, so a public key is never taken for the secret of a symmetric algorithm; an unsigned token
names none. Keys come from the operator's file alone: the headers `jwk`, `jku` and `x5u` are ignored.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from guardwire_server.access.credentials import invalid_credential

logger = logging.getLogger(__name__)

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """An issuer's public key, and the algorithms that may have signed with it."""

    key: PublicKey
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Which tokens are taken: `keys` are by the `kid` that a token must name, `leeway_s` is for clocks that differ."""

    issuer: str
    audience: str
    tenant_claim: str
    leeway_s: float
    keys: Mapping[str, VerificationKey]

    def tenant_name(self, token: str) -> str | None:
        """The name in the tenant claim of a valid token; None if it holds none.

        Raises:
            Unauthenticated: It is not a token, its signature is not right, it is not for us, or not valid now.
        """
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:
                raise jwt.InvalidTokenError("crit")  # an extension that must be understood: we understand none
            key = self.keys.get(header.get("kid", ""))
            if key is None:
                raise jwt.InvalidKeyError("kid")
            claims = jwt.decode(
                token,
                key.key,
                algorithms=key.algorithms,
                options={"require": ["exp", "iss", "aud"]},
                audience=self.audience,
                issuer=self.issuer,
                leeway=self.leeway_s,
            )
        except jwt.PyJWTError as error:
            logger.debug("refused: a web token: %s", type(error).__name__)  # the message may quote the token
            raise invalid_credential() from None
        name = claims.get(self.tenant_claim)
        return name if isinstance(name, str) else None
