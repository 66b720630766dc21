"""Every way in which a web token can be bad."""

import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.access.issuer import AUDIENCE, TENANT_CLAIM, URL, Issuer, forged, public_web_key, segment


def ago(**time: float) -> datetime:
    return datetime.now(UTC) - timedelta(**time)


def with_public_key_as_secret(issuer: Issuer, **header: str) -> str:
    """A token whose HMAC is made with the issuer's public key, which everybody has."""
    pem = issuer.private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    unsigned = forged({"alg": "HS256", "typ": "JWT", "kid": issuer.kid} | header, issuer.claims())
    signed_part = unsigned.rpartition(".")[0]
    return f"{signed_part}.{segment(hmac.digest(pem, signed_part.encode(), hashlib.sha256))}"


BAD_TOKENS: dict[str, tuple[str, Callable[[Issuer, Issuer], str]]] = {
    # Why the library refuses it, and how it is made by the issuer, or by a stranger.
    "signature of another": ("InvalidSignatureError", lambda _, stranger: stranger.token()),
    "no signature": ("InvalidSignatureError", lambda issuer, _: issuer.token().rpartition(".")[0] + "."),
    "part of a signature": ("InvalidSignatureError", lambda issuer, _: issuer.token()[:-10]),
    "algorithm none": (
        "InvalidAlgorithmError",
        lambda issuer, _: forged({"alg": "none", "kid": issuer.kid}, issuer.claims()),
    ),
    "algorithm None": (
        "InvalidAlgorithmError",
        lambda issuer, _: forged({"alg": "None", "kid": issuer.kid}, issuer.claims()),
    ),
    "algorithm none, signed": (
        "InvalidAlgorithmError",
        lambda issuer, _: forged({"alg": "none", "kid": issuer.kid}, issuer.claims(), b"signature"),
    ),
    "no algorithm": ("InvalidAlgorithmError", lambda issuer, _: forged({"kid": issuer.kid}, issuer.claims())),
    "algorithms": (
        "InvalidAlgorithmError",
        lambda issuer, _: forged({"alg": ["RS256"], "kid": issuer.kid}, issuer.claims()),
    ),
    "public key as secret": ("InvalidAlgorithmError", lambda issuer, _: with_public_key_as_secret(issuer)),
    "public key as secret, algorithm of the key": (
        "InvalidSignatureError",
        lambda issuer, _: with_public_key_as_secret(issuer, alg="RS256"),
    ),
    "another algorithm of the same key": ("InvalidAlgorithmError", lambda issuer, _: issuer.token(algorithm="RS512")),
    "expired": ("ExpiredSignatureError", lambda issuer, _: issuer.token(exp=ago(seconds=6))),
    "expired long ago": ("ExpiredSignatureError", lambda issuer, _: issuer.token(exp=0)),
    "not valid yet": ("ImmatureSignatureError", lambda issuer, _: issuer.token(nbf=ago(minutes=-1))),
    "issued in the future": ("ImmatureSignatureError", lambda issuer, _: issuer.token(iat=ago(minutes=-1))),
    "no end": ("MissingRequiredClaimError", lambda issuer, _: issuer.token(without="exp")),
    "no end, said so": ("MissingRequiredClaimError", lambda issuer, _: issuer.token(exp=None)),
    "end that is no time": ("DecodeError", lambda issuer, _: issuer.token(exp="soon")),
    "another audience": ("InvalidAudienceError", lambda issuer, _: issuer.token(aud="somebody")),
    "other audiences": ("InvalidAudienceError", lambda issuer, _: issuer.token(aud=["somebody", "else"])),
    "no audience": ("MissingRequiredClaimError", lambda issuer, _: issuer.token(without="aud")),
    "audience that is none": ("InvalidAudienceError", lambda issuer, _: issuer.token(aud={AUDIENCE: 1})),
    "another issuer": ("InvalidIssuerError", lambda issuer, _: issuer.token(iss=f"{URL}/")),
    "no issuer": ("MissingRequiredClaimError", lambda issuer, _: issuer.token(without="iss")),
    "issuer that is none": ("InvalidIssuerError", lambda issuer, _: issuer.token(iss=5)),
    "unknown key": ("InvalidKeyError", lambda issuer, _: issuer.token(headers={"kid": "two"})),
    "no key named": ("InvalidKeyError", lambda issuer, _: forged({"alg": "RS256"}, issuer.claims())),
    "key that brings itself": (
        "InvalidSignatureError",
        lambda _, stranger: stranger.token(
            headers={
                "jwk": public_web_key(stranger.private_key),
                "jku": "https://stranger.test/keys",
                "x5u": "file:///k",
            }
        ),
    ),
    "extension that must be understood": (
        "InvalidTokenError",
        lambda issuer, _: issuer.token(headers={"crit": ["exp"], "exp": 1}),
    ),
    "payload that is elsewhere": (
        "InvalidTokenError",
        lambda issuer, _: issuer.token(headers={"b64": False, "crit": ["b64"]}),
    ),
    "empty parts": ("DecodeError", lambda *_: ".."),
    "two parts": ("DecodeError", lambda issuer, _: issuer.token().rpartition(".")[0]),
    "five parts, as if encrypted": ("DecodeError", lambda issuer, _: issuer.token() + ".YQ.YQ"),
    "header that is no mapping": ("DecodeError", lambda *_: f"{segment(b'[]')}.{segment(b'{}')}.YQ"),
    "header of another type": (
        "InvalidTokenError",
        lambda issuer, _: forged({"alg": "RS256", "kid": 5}, issuer.claims()),
    ),
}

TOKENS_OF_NO_TENANT: dict[str, Callable[[Issuer], str]] = {
    "unknown": lambda issuer: issuer.token("gamma"),
    "empty": lambda issuer: issuer.token(""),
    "missing": lambda issuer: issuer.token(without=TENANT_CLAIM),
    "list": lambda issuer: issuer.token(["acme"]),
    "null": lambda issuer: issuer.token(None),
}
"""Good ones, whose tenant claim names nobody."""
