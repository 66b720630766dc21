"""Access files as the tests write them, and the keys that they let in."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from guardwire_server.access.load import load_access
from guardwire_server.access.rules import AccessRules

ACME_KEY, BETA_KEY, FORMER_KEY = (f"gw_{name}-{'k' * 36}" for name in ("acme", "beta", "former"))
"""The keys of the tenants acme and beta, and one of acme's that has expired."""

LONG_AGO, LONG_AFTER = "2025-01-01T00:00:00Z", "2125-01-01T00:00:00Z"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def key_entry(key_id: str, tenant: str, key: str, expires: str | None = None) -> dict[str, Any]:
    return {"id": key_id, "tenant": tenant, "sha256": digest(key)} | ({"expires": expires} if expires else {})


@dataclass
class AccessFile:
    """What an access file says, to be changed and written again; by default acme and beta have a key each."""

    path: Path
    tenants: dict[str, dict[str, Any]] = field(default_factory=lambda: {"acme": {}, "beta": {}})
    keys: list[dict[str, Any]] = field(
        default_factory=lambda: [
            key_entry("acme-1", "acme", ACME_KEY, LONG_AFTER),
            key_entry("beta-1", "beta", BETA_KEY),
            key_entry("acme-0", "acme", FORMER_KEY, LONG_AGO),
        ]
    )
    certificates: list[dict[str, Any]] = field(default_factory=list)
    jwt: Mapping[str, Any] | None = None

    def write(self) -> Path:
        content: dict[str, Any] = {
            "version": 1,
            "tenants": self.tenants,
            "keys": self.keys,
            "certificates": self.certificates,
        }
        if self.jwt:
            content["jwt"] = dict(self.jwt)
        self.path.write_text(yaml.safe_dump(content, sort_keys=False))
        return self.path

    def load(self) -> AccessRules:
        return load_access(self.write()).value
