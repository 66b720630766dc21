"""The access file: tenants with their limits, and whose credentials let whom in.

Keys stand in it as their SHA-256 alone. A plain hash is right for them, where a password would need a slow, salted one:
our keys are 256 random bits (access/new_key.py), so there is no dictionary to go through and no list of hashes that
could have been made before, and every call must be checked at once.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

from guardwire_server.access.access_file import AccessFile, Limits
from guardwire_server.access.key_set import read_key_set
from guardwire_server.access.rules import AccessKey, AccessRules, Tenant, TenantLimits
from guardwire_server.access.web_tokens import TokenRules
from guardwire_server.reloading import Loaded
from guardwire_server.settings_file import read_settings

logger = logging.getLogger(__name__)


def load_access(path: Path) -> Loaded[AccessRules]:
    """Reads the access file, and the key set that it may name, relative to its own directory.

    Raises:
        StartupError: Naming file, line and key of every mistake.
    """
    file = read_settings(path, AccessFile)
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


def _limits(limits: Limits | None) -> TenantLimits:
    return TenantLimits(**limits.model_dump()) if limits else TenantLimits()


def _warn_of_expired(path: Path, keys: tuple[AccessKey, ...]) -> None:
    now = datetime.now(UTC)
    for index, key in enumerate(keys):
        if key.expires is not None and key.expires <= now:
            logger.warning("%s: keys.%d: key %s has expired and lets nobody in", path, index, key.id)
