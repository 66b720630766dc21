"""Somebody who issues web tokens: private keys, the file with their public halves, and tokens of all kinds."""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

URL, AUDIENCE, TENANT_CLAIM = "https://issuer.test", "guardwire", "https://issuer.test/tenant"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


def new_private_key(algorithm: str) -> PrivateKey:
    """A key that signs with an algorithm."""
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    if algorithm in curves:
        return ec.generate_private_key(curves[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048)


def public_web_key(key: PrivateKey, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401 any parameter
    """The public half as it stands in a key set."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        return RSAAlgorithm.to_jwk(public, as_dict=True) | parameters
    if isinstance(public, ec.EllipticCurvePublicKey):
        return ECAlgorithm.to_jwk(public, as_dict=True) | parameters
    return OKPAlgorithm.to_jwk(public, as_dict=True) | parameters


class Issuer:
    """One with a key of the given algorithm, named `kid` in its key set."""

    def __init__(self, algorithm: str = "RS256", kid: str = "one") -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.private_key = new_private_key(algorithm)

    def web_key(self, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        return public_web_key(self.private_key, kid=self.kid, **parameters)

    def write_key_set(self, path: Path, *others: "Issuer") -> None:
        keys = [issuer.web_key(use="sig") for issuer in (self, *others)]
        path.write_text(json.dumps({"keys": keys}))

    def rules(self, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
        """The `jwt` section of an access file that trusts this issuer; its key set is `keys.json` beside it."""
        section = {
            "jwks_file": "keys.json",
            "issuer": URL,
            "audience": AUDIENCE,
            "tenant_claim": TENANT_CLAIM,
            "algorithms": [self.algorithm],
            "leeway_s": 5.0,
        }
        return section | changes

    def claims(self, tenant: object = "acme") -> dict[str, Any]:
        """What a good token says."""
        now = datetime.now(UTC)
        return {
            "iss": URL,
            "aud": AUDIENCE,
            "iat": now,
            "nbf": now,
            "exp": now + timedelta(minutes=5),
            TENANT_CLAIM: tenant,
        }

    def token(
        self,
        tenant: object = "acme",
        *,
        without: str = "",
        headers: Mapping[str, Any] | None = None,
        algorithm: str | None = None,
        **changes: Any,  # noqa: ANN401 any claim
    ) -> str:
        """A token by this issuer, good but for what is asked for."""
        claims = {name: value for name, value in (self.claims(tenant) | changes).items() if name != without}
        headers = {"kid": self.kid} | dict(headers or {})
        return jwt.PyJWS().encode(_json(claims), self.private_key, algorithm or self.algorithm, headers)


def forged(header: Mapping[str, Any], claims: Mapping[str, Any], signature: bytes = b"") -> str:
    """A token put together by hand, times as numbers."""
    return ".".join(map(segment, (_json(header), _json(claims), signature)))


def _json(content: Mapping[str, Any]) -> bytes:
    plain = {name: value.timestamp() if isinstance(value, datetime) else value for name, value in content.items()}
    return json.dumps(plain).encode()


def segment(content: bytes) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
