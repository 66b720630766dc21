"""Settings that are refused: by the name that their source gives them, and in words that help."""

from pathlib import Path

import pytest

from guardwire_server.config import load_config
from guardwire_server.model.checkpoint_device import DTYPES
from tests.settings.refusal import refusal


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "guardwire.yaml"


@pytest.mark.parametrize(
    ("written", "near"),
    [("max_session", "; did you mean max_sessions?"), ("max-sessions", "; did you mean max_sessions?"), ("colour", "")],
)
def test_unknown_key(config_file: Path, written: str, near: str) -> None:
    config_file.write_text(f"{written}: 10\n")
    message = refusal({"config": config_file}, {})
    assert message == f"{written} (from {config_file}): there is no such setting{near}"


def test_unknown_variable() -> None:
    for written, near in (("STREAM_MODLE", "; did you mean GUARDWIRE_STREAM_MODEL?"), ("COLOUR", "")):
        message = refusal({}, {f"GUARDWIRE_{written}": "x"})
        assert message == f"GUARDWIRE_{written} (from the environment): there is no such setting{near}"


@pytest.mark.parametrize("key", ["max_sessions", "stream_model", "access_file", "allow_insecure", "log_level"])
def test_empty_value(config_file: Path, key: str) -> None:
    variable = f"GUARDWIRE_{key.upper()}"
    assert refusal({}, {variable: ""}) == f"{variable} (from the environment): is empty"
    assert refusal({key: ""}, {}) == f"{key} (from the command line): is empty"
    config_file.write_text(f"{key}: ''\n")
    assert refusal({"config": config_file}, {}) == f"{key} (from {config_file}): is empty"


def test_key_with_nothing_behind_it(config_file: Path) -> None:
    config_file.write_text("max_sessions:\nkv_memory_gib:\n")  # the second is what it is without the key
    assert refusal({"config": config_file}, {}) == f"max_sessions (from {config_file}): is empty"


def test_no_collector_whatever_opentelemetrys_variable_says() -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}
    assert load_config({}, environment).otlp_endpoint == "http://collector:4317"
    assert not load_config({}, environment | {"GUARDWIRE_OTLP_ENDPOINT": ""}).otlp_endpoint
    message = refusal({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"})
    assert message.startswith("OTEL_EXPORTER_OTLP_ENDPOINT (from the environment): must be http://HOST:PORT")


@pytest.mark.parametrize(
    ("first", "second", "address"),
    [
        ("listen", "metrics_listen", "127.0.0.1:9000"),
        ("listen", "health_listen", "localhost:9000"),
        ("health_listen", "metrics_listen", "127.0.0.1:9000"),
    ],
)
def test_two_of_one_address(first: str, second: str, address: str) -> None:
    flags = {first: "127.0.0.1:9000", second: address}
    assert refusal(flags, {}) == f"{first} and {second} are the same address, {address}"
    load_config({first: "127.0.0.1:0", second: "127.0.0.1:0"}, {})
    load_config({first: "127.0.0.1:9000", second: "127.0.0.2:9000"}, {})


@pytest.mark.parametrize("key", ["dtype", "kv_dtype"])
def test_number_formats_are_those_that_can_be_chosen(key: str) -> None:
    for name in ("auto", *DTYPES):
        assert getattr(load_config({key: name}, {}), key) == name


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:15"])
def test_devices(name: str) -> None:
    assert load_config({"device": name}, {}).device == name


@pytest.mark.parametrize(
    ("key", "value", "mention"),
    [
        ("max_sessions", "many", "valid integer"),
        ("max_sessions", "0", "greater than or equal to 1"),
        ("max_sessions", "2147483648", "less than or equal to 2147483647"),
        ("idle_timeout_s", "0", "greater than 0"),
        ("idle_timeout_s", "inf", "finite"),
        ("write_timeout_s", "nan", "finite"),
        ("max_lifetime_s", "1e12", "less than or equal"),
        ("grace_s", "-1", "greater than or equal to 0"),
        ("kv_memory_gib", "inf", "finite"),
        ("listen", "localhost", "must be HOST:PORT"),
        ("listen", "localhost:99999", "must be HOST:PORT"),
        ("listen", ":50051", "must be HOST:PORT"),
        ("reflection", "perhaps", "must be true or false, found 'perhaps'"),
        ("allow_insecure", "ja", "must be true or false, found 'ja'"),
        ("device", "cuda:x", "must be auto, cpu, cuda or cuda:N, found 'cuda:x'"),
        ("device", "tpu", "must be auto, cpu, cuda or cuda:N, found 'tpu'"),
        ("dtype", "float8", "must be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("kv_dtype", "x", "must be 'auto', 'float32', 'bfloat16' or 'float16'"),
    ],
)
def test_bad_value(config_file: Path, key: str, value: str, mention: str) -> None:
    config_file.write_text(f"{key}: '{value}'\n")
    variable = f"GUARDWIRE_{key.upper()}"
    for flags, environment, beginning in (
        ({"config": config_file}, {}, f"{key} (from {config_file}): "),
        ({}, {variable: value}, f"{variable} (from the environment): "),
        ({key: value}, {}, f"{key} (from the command line): "),
    ):
        message = refusal(flags, environment)
        assert message.startswith(beginning)
        assert mention in message
