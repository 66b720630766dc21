"""`guardwire-server check-config`: what would be in force, or every mistake in every file."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from guardwire_server import demo
from guardwire_server.check_config import check_before_loading, check_config
from guardwire_server.config import ServerConfig
from guardwire_server.core.errors import StartupError
from guardwire_server.core.policy_set import built_in_policies
from guardwire_server.policy_file import load_policies
from tests.access.access_file import AccessFile
from tests.rpc.certificates import Authority, CertificateFiles

POLICIES = "version: 1\npolicies:\n  default: {}\n  own: {}\n"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*ServerConfig.model_fields, "config"):
        monkeypatch.delenv(f"GUARDWIRE_{key.upper()}", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)


class Checked:
    """What one check returned and printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], **flags: object) -> None:
        self.status = check_config({key: str(value) for key, value in flags.items()})
        printed = capsys.readouterr()
        self.lines, self.mistakes = printed.out.splitlines(), printed.err.splitlines()


def test_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    checked = Checked(capsys)
    assert (checked.status, checked.mistakes) == (0, [])
    assert checked.lines == [
        "all settings have their defaults",
        "models: stream_model demo; gen_model demo",
        f"policies from the server itself: default, strict, observe; version {built_in_policies().version}",
        "access: everybody is let in",
        "TLS: none, connections are not encrypted",
    ]


def all_files(directory: Path, **issued: Any) -> dict[str, object]:  # noqa: ANN401 what an authority issues
    authority = Authority("ours")
    certificates = CertificateFiles(directory)
    certificates.write(authority.issue(**issued), authority)
    access = AccessFile(directory / "access.yaml", certificates=[{"tenant": "acme", "dns": "acme.example"}])
    policies = directory / "policies.yaml"
    policies.write_text(POLICIES)
    return {"policies_file": policies, "access_file": access.write(), **certificates.settings}


def test_what_would_be_in_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = all_files(tmp_path)
    config = tmp_path / "guardwire.yaml"
    config.write_text("listen: 0.0.0.0:50051\nmax_sessions: 7\n")
    monkeypatch.setenv("GUARDWIRE_MAX_MESSAGES", "9")
    checked = Checked(capsys, config=config, max_sessions=8, **files)
    assert (checked.status, checked.mistakes) == (0, [])
    settings = {"listen": "0.0.0.0:50051", "max_sessions": 8, "max_messages": 9, **files}
    assert set(checked.lines[:-4]) == {f"{key}: {value}" for key, value in settings.items()}
    _models, policies, access, tls = checked.lines[-4:]
    version = load_policies(tmp_path / "policies.yaml").value.version
    assert policies == f"policies from {files['policies_file']}: default, own; version {version}"
    assert access == f"access from {files['access_file']}: 2 tenants, by 3 keys, 1 certificates and no tokens"
    assert tls.startswith(f"TLS with {files['tls_cert']}: valid until 2")
    assert tls.endswith("+00:00; callers need a certificate")


def test_where_the_models_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    directory = demo.stream_checkpoint_directory()
    checked = Checked(capsys, stream_model=directory, gen_model="Qwen/Qwen3Guard-Gen-4B")
    assert (checked.status, checked.mistakes) == (0, [])
    assert (
        f"models: stream_model in {directory}; gen_model Qwen/Qwen3Guard-Gen-4B of the hub, to be fetched at start"
        in (checked.lines)
    )


def copy_of_config(directory: Path, **changes: object) -> Path:
    """A directory with the files of a Stream checkpoint, but for what is in the weights, and with another config."""
    source = demo.stream_checkpoint_directory()
    values = json.loads((source / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (directory / "model.safetensors").touch()
    return directory


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures is ['LlamaForCausalLM']; served are "),
        ({"hidden_size": "wide"}, "hidden_size must be a positive integer, found 'wide'"),
        ({"response_category_map": {}}, "response_category_map must be an object"),
        ({"guard_inner_size": 0}, "guard_inner_size must be a positive integer, found 0"),
    ],
)
def test_a_checkpoint_that_is_not_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], told: str
) -> None:
    assert Checked(capsys, stream_model=copy_of_config(tmp_path)).status == 0
    checked = Checked(capsys, stream_model=copy_of_config(tmp_path, **changes))
    (mistake,) = checked.mistakes
    assert (checked.status, mistake.startswith(f"stream_model: {tmp_path / 'config.json'}: {told}")) == (1, True)


def test_directories_that_are_no_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_of_config(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (empty := tmp_path / "empty").mkdir()
    (broken := tmp_path / "broken").mkdir()
    (broken / "config.json").write_text("{")
    checked = Checked(capsys, stream_model=tmp_path, gen_model=empty)
    assert checked.mistakes == [
        f"stream_model: {tmp_path / 'tokenizer.json'}: there is no such file; a checkpoint needs it",
        f"gen_model: {empty / 'config.json'}: there is no such file; a checkpoint needs it",
    ]
    (weightless := tmp_path / "weightless").mkdir()
    (copy_of_config(weightless) / "model.safetensors").unlink()
    (mistake,) = Checked(capsys, stream_model=weightless).mistakes
    assert mistake.startswith(f"stream_model: {weightless}: there is neither model.safetensors nor ")
    (mistake,) = Checked(capsys, gen_model=broken).mistakes
    assert mistake.startswith(f"gen_model: {broken / 'config.json'}: is not valid JSON: ")


def test_checkpoints_of_the_other_family(capsys: pytest.CaptureFixture[str]) -> None:
    stream, gen = demo.stream_checkpoint_directory(), demo.gen_checkpoint_directory()
    checked = Checked(capsys, stream_model=gen, gen_model=stream)
    assert (checked.status, checked.mistakes) == (
        1,
        [
            f"stream_model: {gen.name} is a Qwen3Guard-Gen checkpoint: give it as gen_model",
            f"gen_model: {stream.name} is a Qwen3Guard-Stream checkpoint: give it as stream_model",
        ],
    )


def test_a_ready_file_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked = Checked(capsys, ready_file=tmp_path / "missing" / "ready")
    assert (checked.status, checked.mistakes) == (
        1,
        [
            f"ready_file: {tmp_path / 'missing' / 'ready'} cannot be written: "
            f"there is no directory {tmp_path / 'missing'}"
        ],
    )
    assert Checked(capsys, ready_file=tmp_path).mistakes == [f"ready_file: {tmp_path} is a directory"]
    assert Checked(capsys, ready_file=tmp_path / "ready").status == 0


def test_a_start_tells_all_of_it_before_anything_is_loaded(tmp_path: Path) -> None:
    config = ServerConfig(stream_model=str(tmp_path), ready_file=tmp_path, listen="127.0.0.1:0")
    with pytest.raises(StartupError) as raised:
        check_before_loading(config)
    assert [line.partition(":")[0] for line in raised.value.message.splitlines()] == ["stream_model", "ready_file"]


def test_checking_leaves_the_model_libraries_alone() -> None:
    program = (
        "import sys; from guardwire_server.cli import main; from guardwire_server import demo;"
        "status = main(['check-config', '--stream-model', str(demo.stream_checkpoint_directory())]);"
        "print(status, sorted({'torch', 'transformers', 'numpy'} & {*sys.modules}))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("key", ["stream_model", "gen_model"])
def test_a_model_that_is_nowhere(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    checked = Checked(capsys, **{key: "/nowhere"})
    assert checked.status == 1
    (mistake,) = checked.mistakes
    assert mistake.startswith(f"{key}: /nowhere: there is no such directory")


def test_what_deserves_a_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = all_files(tmp_path, ends_in=timedelta(days=3))
    del files["tls_client_ca"]
    checked = Checked(capsys, **files)
    assert (checked.status, checked.mistakes) == (0, [])
    assert checked.lines[-2].endswith("1 certificates and no tokens; without tls_client_ca no caller has a certificate")
    assert checked.lines[-1].endswith(", which is soon; callers need no certificate")


def test_every_mistake_of_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = all_files(tmp_path, ends_in=timedelta(days=-1))
    policies, access = tmp_path / "policies.yaml", tmp_path / "access.yaml"
    policies.write_text("version: 1\npolicies:\n  default: {strictness: hard}\n  own: {on_error: allow}\n")
    access.write_text(access.read_text().replace("version: 1", "version: 2"))
    checked = Checked(capsys, **files)
    assert checked.status == 1
    assert [mistake.split(": ")[:2] for mistake in checked.mistakes] == [
        [f"{policies}:3", "policies.default.strictness"],
        [f"{policies}:4", "policies.own.on_error"],
        [f"{access}:1", "version"],
        ["tls_cert", f"the certificate in {files['tls_cert']} has expired on {checked.mistakes[3].rsplit(' ', 1)[1]}"],
    ]
    assert not any(line.startswith(("policies from", "access from", "TLS")) for line in checked.lines)


def test_a_good_file_is_told_beside_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = all_files(tmp_path)
    (tmp_path / "policies.yaml").unlink()
    checked = Checked(capsys, **files)
    assert checked.status == 1
    assert checked.mistakes == [f"{files['policies_file']}: cannot be read: No such file or directory"]
    assert [line.split(" ")[0] for line in checked.lines[-2:]] == ["access", "TLS"]


def test_settings_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked = Checked(capsys, max_sessions="none", listen="0.0.0.0:1", policies_file=tmp_path / "none")
    assert (checked.status, checked.lines) == (1, [])
    assert "max_sessions (from the command line): " in checked.mistakes[0]
