"""Settings: where they come from, which source wins, and how a wrong one is refused: by name and source."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from guardwire_server.cli import main
from guardwire_server.config import ServerConfig, load_config
from guardwire_server.policy_file import load_policies
from tests.e2e.conftest import StartProcess
from tests.process_logging import restored_logging  # noqa: F401 a fixture
from tests.settings.refusal import refusal

pytestmark = pytest.mark.usefixtures("restored_logging")  # commands set the process's logging up


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without settings of this machine; and what the command sets for its libraries is taken back."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")
    for key in (*ServerConfig.model_fields, "config"):
        monkeypatch.delenv(f"GUARDWIRE_{key.upper()}", raising=False)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "guardwire.yaml"


def test_file_then_environment_then_flag(config_file: Path) -> None:
    config_file.write_text("max_sessions: 10\nmax_messages: 11\nmax_num_seqs: 12\nreflection: false\n")
    environment = {"GUARDWIRE_MAX_MESSAGES": "21", "GUARDWIRE_MAX_NUM_SEQS": "22", "HOME": "/"}
    config = load_config({"config": config_file, "max_num_seqs": "32", "max_sessions": None}, environment)
    assert (config.max_sessions, config.max_messages, config.max_num_seqs) == (10, 21, 32)
    assert config.reflection is False
    assert config.max_classify_calls == ServerConfig().max_classify_calls


def test_file_named_by_the_environment(config_file: Path, tmp_path: Path) -> None:
    config_file.write_text("max_sessions: 10\n")
    other = tmp_path / "other.yaml"
    other.write_text("max_sessions: 20\n")
    environment = {"GUARDWIRE_CONFIG": str(config_file)}
    assert load_config({}, environment).max_sessions == 10
    assert load_config({"config": other}, environment).max_sessions == 20


def test_a_server_without_models() -> None:
    assert refusal({"stream_model": "none", "gen_model": "none"}, {}).startswith(
        "stream_model, gen_model: both are none"
    )


def test_empty_file_and_the_clients_variable_change_nothing(config_file: Path) -> None:
    config_file.write_text("# nothing yet\n")
    assert load_config({"config": config_file}, {"GUARDWIRE_TARGET": "somewhere:1"}) == ServerConfig()


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_setting() -> None:
    environment = {
        "GUARDWIRE_PORT": "tcp://10.0.0.1:50051",
        "GUARDWIRE_PORT_50051_TCP_ADDR": "10.0.0.1",
        "GUARDWIRE_SERVICE_HOST": "10.0.0.1",
    }
    assert load_config({}, environment) == ServerConfig()


def test_every_fault_is_named_at_once(config_file: Path) -> None:
    config_file.write_text("colour: red\nmax_messages: 0\n")
    message = refusal({"config": config_file, "listen": "here"}, {"GUARDWIRE_GRACE_S": "soon"})
    for part in (
        f"colour (from {config_file})",
        f"max_messages (from {config_file})",
        "GUARDWIRE_GRACE_S (from the environment)",
        "listen (from the command line)",
    ):
        assert part in message
    assert "\n" not in message


def test_fault_of_a_source_that_is_overruled_does_not_matter() -> None:
    assert load_config({"max_sessions": "5"}, {"GUARDWIRE_MAX_SESSIONS": "many"}).max_sessions == 5


@pytest.mark.parametrize(
    ("content", "mention"),
    [
        (b"- a\n- b\n", ":1: the file must be a mapping"),
        (b"a: [1\n", ":2: not YAML"),
        (b"a: \xff\n", ":1: not UTF-8"),
        (b"a: 1\na: 2\n", ":2: a: is there twice"),
        (None, "cannot be read"),
    ],
    ids=["list", "no YAML", "no UTF-8", "twice", "missing"],
)
def test_unreadable_file(config_file: Path, content: bytes | None, mention: str) -> None:
    if content is not None:
        config_file.write_bytes(content)
    message = refusal({"config": config_file}, {})
    assert message.startswith("config: ")
    assert mention in message
    assert str(config_file) in message


def run(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, str]:
    """Runs the command; returns its exit status and what it printed."""
    try:
        status = main(arguments)
    except SystemExit as end:  # argparse's way
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARDWIRE_MAX_SESIONS", "10")
    assert run(capsys, ["serve"]) == (
        1,
        "guardwire-server: GUARDWIRE_MAX_SESIONS (from the environment): there is no such setting; "
        "did you mean GUARDWIRE_MAX_SESSIONS?\n",
    )


@pytest.mark.parametrize("flag", ["--max-session=3", "--colour=red", "--max_sessions=3"])
def test_unknown_flag(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    status, output = run(capsys, ["serve", flag])
    assert status == 2
    assert f"unrecognized arguments: {flag}" in output


def test_help_lists_all_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    status, output = run(capsys, ["serve", "--help"])
    assert status == 0
    assert "--config FILE" in output
    for key, field in ServerConfig.model_fields.items():
        assert f"--{key.replace('_', '-')} " in output
        assert field.description
        assert field.description in output
        if field.default is not None:
            assert f"(default: {field.default})" in output


def test_help_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    status, output = run(capsys, ["--help"])
    assert status == 0
    for command in ("serve", "demo", "check-model"):
        assert command in output
    assert run(capsys, [])[0] == 2


@pytest.mark.parametrize("name", ["missing/ready", "", "."])
def test_ready_file_that_cannot_be(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    path = tmp_path / name if name else Path()
    status, output = run(capsys, ["serve", f"--ready-file={path}"])
    assert status == 1
    assert output.startswith("guardwire-server: ready_file: ")
    assert output.count("\n") == 1


def test_damaged_checkpoint(capsys: pytest.CaptureFixture[str], checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights that break off in the middle: one clear line at the end, and nobody is told that it serves."""
    damaged, ready_file = tmp_path / "damaged", tmp_path / "ready"
    damaged.mkdir()
    for file in checkpoints[0].iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    flags = ["--gen-model=none", "--listen=127.0.0.1:0", "--device=cpu", f"--ready-file={ready_file}"]
    status, output = run(capsys, ["serve", f"--stream-model={damaged}", *flags])
    assert status == 1
    assert output.splitlines()[-1].startswith("guardwire-server: ")
    assert "model.safetensors" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not ready_file.exists()


def test_real_process(start_process: StartProcess, config_file: Path) -> None:
    config_file.write_text("max_sessions: 10\nmax_sesions: 10\n")
    process = start_process(environment={"GUARDWIRE_CONFIG": str(config_file)}, grace_s="soon")
    assert process.wait() == 1
    (line,) = process.errors.splitlines()
    assert line.startswith("guardwire-server: ")
    assert f"max_sesions (from {config_file}): there is no such setting" in line
    assert "grace_s (from the command line): " in line


async def test_a_start_says_what_is_in_force(
    start_process: StartProcess, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    policies = tmp_path / "policies.yaml"
    policies.write_text("version: 1\npolicies:\n  default:\n")
    process = start_process(
        policies_file=policies, health_listen="127.0.0.1:0", kv_memory_gib=1000, max_context_tokens=100_000
    )
    address = await process.ready()
    events = [json.loads(line) for line in process.errors.splitlines()]
    told = {level: [line["event"] for line in events if line["level"] == level] for level in ("info", "warning")}
    for kind, path, length in zip(("stream", "gen"), checkpoints, (8192, 32768), strict=True):
        (model,) = [line for line in told["info"] if line.startswith(f"{kind}_model: {path.name}, revision sha256:")]
        assert re.search(r" on cpu in (float32|bfloat16) with (native kernels|torch alone); ", model)
        assert f"; conversations of up to {length} tokens; keys and values of " in model
        assert re.search(r" tokens in (float32|bfloat16), [0-9.]+ GiB$", model)
        assert (
            f"max_context_tokens: 100000 are wanted, but conversations with {path.name} are limited to {length}, "
            "which it was made for"
        ) in told["warning"]
    assert len([line for line in told["warning"] if line.startswith("kv_memory_gib: 1000 GiB are wanted, but ")]) == 2
    version = load_policies(policies).value.version
    at_the_end = [
        f"policies from {policies}: default; version {version}",
        "access: everybody is let in",
        "TLS: none, connections are not encrypted",
    ]
    assert told["info"][-5:-2] == at_the_end
    assert told["info"][-2].startswith("health alone on 127.0.0.1:")
    assert told["info"][-1] == f"serving on {address}"


def test_check_model_with_a_number_format_that_is_none(
    capsys: pytest.CaptureFixture[str], checkpoints: tuple[Path, Path]
) -> None:
    status, output = run(capsys, ["check-model", str(checkpoints[0]), "--dtype=float8"])
    assert status == 1
    assert output.splitlines()[-1].startswith("guardwire-server: dtype (from the command line): must be 'auto', ")
