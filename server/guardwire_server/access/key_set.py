"""The issuer's public keys from a file: a JSON web key set (RFC 7517)."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from pydantic import BaseModel, ConfigDict, ValidationError

from guardwire_server.access.web_tokens import PublicKey, VerificationKey
from guardwire_server.core.errors import StartupError
from guardwire_server.strict_yaml import read_bounded

logger = logging.getLogger(__name__)

ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
"""What can have signed, by key type and curve (RFC 7518, section 3.1; RFC 8037). All are asymmetric."""

MIN_RSA_BITS = 2048
"""RFC 7518, section 3.3."""


class _WebKey(BaseModel):
    """One key; what its type adds to this, the library reads."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)

    kty: str
    kid: str | None = None
    use: str = "sig"
    key_ops: list[str] = ["verify"]
    alg: str | None = None
    crv: str | None = None


class _KeySet(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    keys: list[_WebKey]


def read_key_set(path: Path, algorithms: Collection[str]) -> dict[str, VerificationKey]:
    """The keys that may verify tokens, by their `kid`; those for other uses and algorithms are passed over.

    Raises:
        StartupError: Naming the file and the place in it.
    """
    keys: dict[str, VerificationKey] = {}
    for index, web_key in enumerate(_read(path).keys):
        if web_key.use != "sig" or "verify" not in web_key.key_ops:
            continue
        place = f"{path}: keys.{index}"
        key = _verification_key(place, web_key, algorithms)
        if key is None:
            continue
        if not web_key.kid:
            raise StartupError(f"{place}.kid: is missing; tokens name their key by it")
        if web_key.kid in keys:
            raise StartupError(f"{place}.kid: another key has the same")
        keys[web_key.kid] = key
    if not keys:
        raise StartupError(f"{path}: keys: none can have signed with {', '.join(algorithms)}")
    return keys


def _read(path: Path) -> _KeySet:
    content = read_bounded(path)
    try:
        return _KeySet.model_validate_json(content)
    except ValidationError as error:
        mistakes = (
            f"{path}: {'.'.join(map(str, item['loc']))}{': ' if item['loc'] else ''}{item['msg']}"
            for item in error.errors(include_input=False, include_context=False, include_url=False)
        )
        raise StartupError("\n".join(mistakes)) from None


def _verification_key(place: str, web_key: _WebKey, allowed: Collection[str]) -> VerificationKey | None:
    """The key; None, and a word in the log, if nothing that is allowed can have signed with it."""
    if web_key.kty == "oct":
        raise StartupError(f"{place}.kty: a symmetric key; whoever can check its tokens can forge them")
    if "d" in (web_key.model_extra or {}):
        raise StartupError(f"{place}.d: a private key; only public ones belong here")
    possible = ALGORITHMS.get((web_key.kty, web_key.crv), ())
    algorithms = tuple(name for name in possible if name in allowed and web_key.alg in (None, name))
    if not algorithms:
        logger.warning("%s: passed over: no algorithm of jwt.algorithms can have signed with it", place)
        return None
    key = _public_key(place, web_key.model_dump(exclude_none=True), algorithms[0])
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise StartupError(f"{place}.n: {key.key_size} bits, at least {MIN_RSA_BITS} are required")
    return VerificationKey(key, algorithms)


def _public_key(place: str, data: dict[str, Any], algorithm: str) -> PublicKey:
    try:
        key: PublicKey = jwt.PyJWK(data, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):  # their messages quote the key
        raise StartupError(f"{place}: not a public key of type {data['kty']}") from None
    return key
