"""`guardwire-server check-config`: reads settings and the files that they name, as at start, and says what is in them.

For a look before a rollout: nothing is served, no model is loaded, no port is taken.
"""

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from guardwire_server.access.load import load_access
from guardwire_server.config import ServerConfig, load_config
from guardwire_server.core.errors import StartupError
from guardwire_server.core.policy_set import built_in_policies
from guardwire_server.model.checkpoint import CheckpointKind, check_directory
from guardwire_server.model.checkpoint_hub import local_checkpoint
from guardwire_server.policy_file import load_policies
from guardwire_server.rpc.server import check_address
from guardwire_server.rpc.tls import EXPIRY_NOTICE_S, read_tls_files


def check_config(flags: Mapping[str, Any]) -> int:
    """Prints what would be in force, and every mistake to standard error; returns 0, or 1 if there is a mistake.

    Args:
        flags: What `config.add_flags` made of the command line.
    """
    try:
        config = load_config(flags)
    except StartupError as error:  # whatever it names cannot be looked at then
        print(error, file=sys.stderr)
        return 1
    facts, mistakes = check_files(config)
    for line in (*_settings(config), *facts):
        print(line)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    return 1 if mistakes else 0


def check_files(config: ServerConfig) -> tuple[list[str], list[str]]:
    """Reads all files that settings name; what is in those that are right, and the mistakes in the others."""
    facts: list[str | None] = []
    mistakes: list[str] = []
    for check in (_models, _policies, _access, _certificates, _ready_file):
        try:
            facts.append(check(config))
        except StartupError as error:
            mistakes.append(error.message)
    return [fact for fact in facts if fact], mistakes


def rules_in_force(config: ServerConfig) -> list[str]:
    """What policies, access rules and certificates say now, a line for each.

    Raises:
        StartupError: If a file is not as it must be.
    """
    return [_policies(config), _access(config), _certificates(config)]


def check_before_loading(config: ServerConfig) -> None:
    """Finds out what can be found out before minutes are spent on loading; torch is not imported for it.

    Raises:
        StartupError: If an address cannot be bound, or a file that a setting names is not as it must be.
    """
    _, mistakes = check_files(config)
    if mistakes:
        raise StartupError("\n".join(mistakes))
    check_address(config.listen)
    if config.health_listen:
        check_address(config.health_listen, "health_listen")


def _settings(config: ServerConfig) -> list[str]:
    fields = ServerConfig.model_fields.items()
    changed = {key: value for key, field in fields if (value := getattr(config, key)) != field.default}
    return [f"{key}: {value}" for key, value in changed.items()] or ["all settings have their defaults"]


def _models(config: ServerConfig) -> str:
    facts, mistakes = [], []
    for kind in CheckpointKind:
        try:
            facts.append(f"{kind.setting} {_model(kind, getattr(config, kind.setting))}")
        except StartupError as error:
            mistakes.append(f"{kind.setting}: {error.message}")
    if mistakes:
        raise StartupError("\n".join(mistakes))
    return f"models: {'; '.join(facts)}"


def _model(kind: CheckpointKind, name: str) -> str:
    if name in ("demo", "none"):
        return name
    directory = local_checkpoint(name)
    if directory is None:
        return f"{name} of the hub, to be fetched at start"
    check_directory(directory, kind)
    return f"in {directory}"


def _policies(config: ServerConfig) -> str:
    path = config.policies_file
    policies = load_policies(path).value if path else built_in_policies()
    names = ", ".join(policies.policies)
    return f"policies from {path or 'the server itself'}: {names}; version {policies.version}"


def _access(config: ServerConfig) -> str:
    path = config.access_file
    if path is None:
        return "access: everybody is let in"
    rules = load_access(path).value
    tokens = "tokens" if rules.tokens else "no tokens"
    counts = f"{len(rules.keys)} keys, {len(rules.certificates)} certificates and {tokens}"
    is_unasked = rules.certificates and config.tls_client_ca is None
    note = "; without tls_client_ca no caller has a certificate" if is_unasked else ""
    return f"access from {path}: {len(rules.tenants)} tenants, by {counts}{note}"


def _certificates(config: ServerConfig) -> str:
    if config.tls_cert is None or config.tls_key is None:
        return "TLS: none, connections are not encrypted"
    now_s = time.time()
    files = read_tls_files(config.tls_cert, config.tls_key, config.tls_client_ca, now_s).value
    date = datetime.fromtimestamp(files.not_after, UTC).isoformat(timespec="seconds")
    soon = ", which is soon" if files.not_after - now_s < EXPIRY_NOTICE_S else ""
    callers = "need a certificate" if files.client_authorities else "need no certificate"
    return f"TLS with {config.tls_cert}: valid until {date}{soon}; callers {callers}"


def _ready_file(config: ServerConfig) -> str | None:
    path = config.ready_file
    if path is None:
        return None
    if path.is_dir():
        raise StartupError(f"ready_file: {path} is a directory")
    if not path.parent.is_dir():
        raise StartupError(f"ready_file: {path} cannot be written: there is no directory {path.parent}")
    return None
