"""Keys and TLS of the client and of its command; handshakes with a real server are in tests/rpc/test_tls_clients.py."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from guardwire import AsyncClient, Client, InvalidRequest, tls_credentials
from guardwire.cli import main
from guardwire.credentials import read_api_key
from tests.clients.command import run_python
from tests.clients.fake_server import FakeServer
from tests.rpc.certificates import Authority

KEY = "gw_0123456789abcdef"

UNSENDABLE = ["", "two words", f"{KEY}\n", "\x00", "schlüssel", f"{KEY}\x7f"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUARDWIRE_API_KEY", raising=False)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n", encoding="ascii")
    return path


def sent(fake: FakeServer) -> str | bytes | None:
    """What the last call has shown; it is forgotten then."""
    metadata, fake.metadata = fake.metadata, {}
    return metadata.get("authorization")


async def test_key_goes_with_every_call(fake: FakeServer, target: str) -> None:
    async with AsyncClient(target, api_key=KEY, metadata=[("x-more", "1")]) as client:
        await client.classify("hi")
        assert fake.metadata["x-more"] == "1"
        assert sent(fake) == f"Bearer {KEY}"
        await client.server_info()
        assert sent(fake) == f"Bearer {KEY}"
        await client.tokenizer_json()
        assert sent(fake) == f"Bearer {KEY}"
        async with client.moderate("hi") as stream:
            await stream.finish()
        assert sent(fake) == f"Bearer {KEY}"
        async with client.moderate_many() as many:
            await (await many.moderate("hi")).leave()
        assert sent(fake) == f"Bearer {KEY}"


async def test_key_of_the_other_client(fake: FakeServer, target: str) -> None:
    def ask() -> None:
        with Client(target, api_key=KEY) as client:
            client.classify("hi")

    await asyncio.to_thread(ask)
    assert sent(fake) == f"Bearer {KEY}"


async def test_no_key(fake: FakeServer, target: str) -> None:
    async with AsyncClient(target) as client:
        await client.classify("hi")
    assert sent(fake) is None


@pytest.mark.parametrize("key", UNSENDABLE)
def test_key_that_cannot_be_sent_is_refused_and_not_repeated(key: str, tmp_path: Path) -> None:
    for make in (AsyncClient, Client):
        with pytest.raises(InvalidRequest, match="api_key: must be one word") as raised:
            make("localhost:1", api_key=key)
        assert raised.value.field == "api_key"
        assert not key or key not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"schl\xc3\xbcssel", b"\xff"])
def test_file_that_holds_no_key(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="does not hold a key") as raised:
        read_api_key(path)
    assert str(path) in str(raised.value)
    assert raised.value.__cause__ is None


def test_half_a_client_certificate(tmp_path: Path) -> None:
    for given, missing in (("cert_file", "key_file"), ("key_file", "cert_file")):
        with pytest.raises(InvalidRequest, match="both or neither") as raised:
            tls_credentials(**{given: tmp_path / "x"})
        assert raised.value.field == missing


@dataclass(frozen=True)
class PemFiles:
    """Good files, to be replaced one at a time."""

    ca_file: Path
    cert_file: Path
    key_file: Path


@pytest.fixture
def pem_files(tmp_path: Path) -> PemFiles:
    authority = Authority("files")
    own = authority.issue("caller")
    files = PemFiles(*(tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key")))
    files.ca_file.write_bytes(authority.certificate)
    files.cert_file.write_bytes(own.certificate)
    files.key_file.write_bytes(own.private_key)
    return files


@pytest.mark.parametrize("argument", ["ca_file", "cert_file", "key_file"])
def test_tls_file_that_cannot_be_used(argument: str, pem_files: PemFiles, tmp_path: Path) -> None:
    good = dataclasses.asdict(pem_files)
    assert isinstance(tls_credentials(**good), grpc.ChannelCredentials)
    other = pem_files.ca_file if argument == "key_file" else pem_files.key_file
    what = "private key" if argument == "key_file" else "certificate"
    binary = tmp_path / "der"
    binary.write_bytes(b"\x30\x82\x01\xff")
    for path, message in (
        (tmp_path / "nothere.crt", "cannot read {}: No such file or directory"),
        (tmp_path, "cannot read {}: Is a directory"),
        (binary, f"{{}} holds no {what} in PEM form"),
        (other, f"{{}} holds no {what} in PEM form"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            tls_credentials(**(good | {argument: path}))
        assert raised.value.message == f"{argument}: {message.format(path)}"
        assert raised.value.field == argument


@pytest.mark.parametrize(
    "content",
    [
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=\n",
        b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMII=\n",
    ],
)
def test_key_that_asks_for_a_passphrase(content: bytes, pem_files: PemFiles) -> None:
    pem_files.key_file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"key_file: the key in .* is encrypted") as raised:
        tls_credentials(**dataclasses.asdict(pem_files))
    assert raised.value.field == "key_file"


async def test_command_names_the_flag_of_a_file(pem_files: PemFiles, capfd: pytest.CaptureFixture[str]) -> None:
    ca, cert, key = (str(path) for path in dataclasses.astuple(pem_files))
    for flags, message in (
        (["--tls-ca", key], f"--tls-ca: {key} holds no certificate in PEM form"),
        (["--tls-cert", key, "--tls-key", key], f"--tls-cert: {key} holds no certificate in PEM form"),
        (["--tls-cert", cert, "--tls-key", ca], f"--tls-key: {ca} holds no private key in PEM form"),
    ):
        assert await asyncio.to_thread(main, ["info", "--target", "localhost:1", *flags]) == 1
        assert capfd.readouterr().err == f"guardwire: error: {message}\n"  # and nothing of gRPC's


async def test_commands_key_from_the_environment(
    fake: FakeServer, target: str, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARDWIRE_API_KEY", "another")
    await asyncio.to_thread(main, ["info", "--target", target])
    assert sent(fake) == "Bearer another"
    await asyncio.to_thread(main, ["info", "--target", target, "--api-key-file", str(key_file)])
    assert sent(fake) == f"Bearer {KEY}"
    monkeypatch.setenv("GUARDWIRE_API_KEY", "")
    await asyncio.to_thread(main, ["info", "--target", target])
    assert sent(fake) is None


def test_command_does_not_take_a_key_as_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["info", "--api-key", KEY])
    assert raised.value.code == 2
    with pytest.raises(SystemExit):
        main(["info", "--help"])
    assert "GUARDWIRE_API_KEY" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-key-file", "/nowhere/at/all"], "--api-key-file: cannot read /nowhere/at/all: No such file"),
        (["--tls-ca", "/nowhere/at/all"], "--tls-ca: cannot read /nowhere/at/all: No such file"),
    ],
)
def test_files_that_the_command_cannot_use(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("guardwire: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("key", ["two words", "schlüssel"])
def test_key_that_the_command_cannot_send(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUARDWIRE_API_KEY", key)
    assert main(["info"]) == 1
    error = capsys.readouterr().err
    assert "GUARDWIRE_API_KEY: must be one word" in error
    assert key not in error


async def test_process_that_is_refused_does_not_show_its_key() -> None:
    ran = await run_python("-m", "guardwire", "info", "--target", "localhost:1", GUARDWIRE_API_KEY=KEY)
    assert ran.returncode == 1
    assert "UNAVAILABLE" in ran.stderr
    assert KEY not in ran.stdout + ran.stderr
