"""The contract's comments, documentation and stubs agree with the contract."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from guardwire.v1 import moderation_pb2

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "protos" / "guardwire" / "v1" / "moderation.proto"
STUBS = ROOT / "clients" / "python" / "src" / "guardwire" / "v1"
DESCRIPTOR = moderation_pb2.DESCRIPTOR


def known_names() -> set[str]:
    names = {"default"}  # the one policy that always exists
    for message in DESCRIPTOR.message_types_by_name.values():
        names.add(message.name)
        names |= {field.name for field in message.fields} | {f"{message.name}.{field.name}" for field in message.fields}
    for enum in DESCRIPTOR.enum_types_by_name.values():
        names |= {enum.name} | set(enum.values_by_name)
    for service in DESCRIPTOR.services_by_name.values():
        names |= set(service.methods_by_name)
    return names


def commented_names() -> set[str]:
    comments = " ".join(line.strip()[3:] for line in PROTO.read_text().splitlines() if line.strip().startswith("//"))
    return set(re.findall(r"`([A-Za-z_][A-Za-z_.]*)`", comments))


FOREIGN_NAMES = {
    "ErrorInfo",
    "BadRequest",
    "RetryInfo",
    "RequestInfo",
    "google.rpc",
    "google.rpc.ErrorInfo",
    "guardwire",
    "reason",
    "bfloat",
    "cpu",
    "on_error",
}
"""What comments name that the file does not define: google.rpc's messages, and values."""


def test_names_in_comments_exist() -> None:
    assert commented_names() - known_names() - FOREIGN_NAMES == set()
    assert len(commented_names()) > 20


def test_enums_and_statuses_of_the_documentation_exist_in_the_code() -> None:
    documented = set(re.findall(r"`([A-Z][A-Z_]{4,})`", (ROOT / "protos" / "README.md").read_text()))
    code = "\n".join(path.read_text() for path in (ROOT / "server" / "guardwire_server").rglob("*.py"))
    raised = set(
        re.findall(
            r"(?:InvalidField|OutOfRange|WrongState|UnknownName|NotServed|StreamTimeout|DeadlinePassed|Abandoned|"
            r"Unauthenticated|PermissionDenied|Overloaded|Draining|EngineError|EngineUnavailable)\(\s*(?:request_id=)?\"([A-Z_]+)\"",
            code,
        )
    )
    raised |= {word for pair in re.findall(r'reason = "([A-Z_]+)" if .* else "([A-Z_]+)"', code) for word in pair}
    raised |= set(re.findall(r'^_INVALID = "([A-Z_]+)"', code, re.MULTILINE))
    assert documented == raised


def test_stubs_are_fresh(tmp_path: Path) -> None:
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    subprocess.run([ROOT / "protos" / "generate.sh", tmp_path], check=True, env=environment, capture_output=True)
    generated = sorted((tmp_path / "guardwire" / "v1").iterdir())
    assert {path.name for path in generated} == {path.name for path in STUBS.iterdir() if "_pb2" in path.name}
    for path in generated:
        assert path.read_text() == (STUBS / path.name).read_text(), f"{path.name} is stale: run make protos"


@pytest.mark.parametrize("enum", DESCRIPTOR.enum_types_by_name.values(), ids=lambda enum: enum.name)
def test_every_enum_has_an_unspecified_zero(enum: object) -> None:
    values = enum.values_by_number  # type: ignore[attr-defined]
    assert values[0].name.endswith("_UNSPECIFIED")
