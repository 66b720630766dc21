"""Raw bytes as the files that an operator writes: whatever they hold, only StartupError says that it is wrong.

The first byte says which file it is.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from guardwire_server.access.key_set import read_key_set
from guardwire_server.access.load import load_access
from guardwire_server.config import load_config
from guardwire_server.core.errors import StartupError
from guardwire_server.policy_file import load_policies

_KEY = {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "1", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
_SEEDS = (
    """version: 1
policies:
  default: {strictness: strict, debounce: any_risk, min_probability: 0.5, on_error: flag}
  lax:
    description: "Lets \\u0022nearly\\u0022 everything pass."
    user: {unsafe: allow, controversial: flag, categories: {jailbreak: block}}
    assistant: {unsafe: flag, categories: {pii: block}}
    on_error: allow
    allow_unjudged: true
    observe_only: true
""",
    """version: 1
tenants:
  one: {max_streams: 2, tokens_per_s: 1.5, burst_tokens: 10, max_message_bytes: 100}
  two:
keys:
  - id: a
    tenant: one
    sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    expires: 2030-01-01T00:00:00Z
certificates:
  - {tenant: two, dns: two.example}
  - {tenant: two, uri: "spiffe://example/two"}
""",
    """max_sessions: 4
listen: "127.0.0.1:0"
grace_s: 1.5
log_format: json
reflection: null
""",
    json.dumps({"keys": [_KEY]}),
)
_WORDS = (
    *("&a ", "*a", "!!timestamp ", "!!int ", "!!float ", "!!bool ", "!!binary ", "!!set ", "!!python/none ", "<<: "),
    *("2026-01-01", "2026-01-01T00:00:00Z", "1:30", "0x1f", "0b1", "0o7", "1_000", ".inf", ".nan", "1e400", "9" * 60),
    *("yes", "null", "~", "? ", "- ", "|\n", ">-\n", "---\n", "...\n", "%YAML 1.1\n", "\t", "\u2028", "\ufeff"),
    *("[" * 60, "{a: " * 15, "- " * 30, '"\\U00110000"', '"\\ud800"', "'", "\x00", "\x85"),
)
"""What YAML, and Python's numbers and dates, treat specially."""


class FilesTarget:
    """Owner of the file that the bytes are written to."""

    words = _WORDS

    def __init__(self) -> None:
        logging.getLogger("guardwire_server").setLevel(logging.ERROR)  # warnings of keys that have expired, and such
        self._directory = tempfile.TemporaryDirectory(prefix="fuzz-files-")
        self._path = Path(self._directory.name) / "file"
        self._loaders: tuple[Callable[[Path], object], ...] = (
            load_policies,
            load_access,
            lambda path: load_config({"config": str(path)}, {}),
            lambda path: read_key_set(path, ("EdDSA", "ES256", "RS256")),
        )

    def seeds(self) -> Iterator[bytes]:
        """A good file of each kind, and one with each word."""
        for number, content in enumerate(_SEEDS):
            yield bytes((number,)) + content.encode()
            for word in _WORDS:
                yield bytes((number,)) + f"version: {word}".encode()

    def try_input(self, data: bytes) -> None:
        """Loads one file; raises if it is refused with anything but StartupError."""
        if not data:
            return
        self._path.write_bytes(data[1:])
        with contextlib.suppress(StartupError):
            self._loaders[data[0] % len(self._loaders)](self._path)

    def close(self) -> None:
        """Removes the file."""
        self._directory.cleanup()
