"""Making an access key: printed once, and kept nowhere."""

import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import TextIO

from guardwire_server.access.access_file import NAME_PATTERN
from guardwire_server.access.rules import KEY_PREFIX
from guardwire_server.core.errors import StartupError

KEY_BYTES = 32
"""256 random bits: nobody guesses them, so a plain hash of them can be kept (access/load.py)."""


def print_new_key(tenant: str, key_id: str, output: TextIO, now: datetime | None = None) -> None:
    """Makes a key and prints it, with the entry for the access file, which holds its hash alone.

    Args:
        tenant: Whose key it is.
        key_id: Its name in the log.
        output: Where to, the only place where the key ever is.
        now: The time, which a comment tells; default: now.

    Raises:
        StartupError: If a name could not stand in the access file.
    """
    for option, name in (("tenant", tenant), ("id", key_id)):
        if not re.fullmatch(NAME_PATTERN, name):
            raise StartupError(f"{option}: must be up to 63 letters, digits, dots, hyphens and underscores")
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    print(
        f"The key, for {tenant} alone; it is shown this once:\n\n"
        f"{key}\n\n"
        "Below `keys` in the access file:\n\n"
        f'  - id: "{key_id}"  # made on {now or datetime.now(UTC):%Y-%m-%d}\n'
        f'    tenant: "{tenant}"\n'
        f'    sha256: "{digest}"',
        file=output,
    )
