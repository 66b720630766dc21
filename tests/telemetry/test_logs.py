"""Log lines: JSON or text, each with the span that is current, tracebacks without variables; and the same by OTLP."""

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber

from guardwire_server.telemetry.logs import configure_logging
from guardwire_server.telemetry.providers import Telemetry
from tests.telemetry.conftest import StartTelemetry
from tests.telemetry.otlp_sink import OtlpSink

SECRET = "what-the-caller-wrote"

logger = logging.getLogger("guardwire_server.test")
library_logger = logging.getLogger("some_library.module")

pytestmark = pytest.mark.usefixtures("restored_logging")


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail_with_a_secret_in_a_variable() -> None:
    text = SECRET + "!"
    assert text
    raise RuntimeError("it failed")


def log_failure() -> None:
    try:
        fail_with_a_secret_in_a_variable()
    except RuntimeError:
        logger.exception("call failed")


def test_a_line_is_one_json_object() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)  # no terminal
    before = datetime.now(UTC)
    logger.info("loaded %s\nin %d s", "a model", 3, extra={"num_layers": 28, "level": "not ours to change"})
    library_logger.warning("beware")
    first, second = json_lines(stream)
    assert before.timestamp() - 0.001 <= datetime.fromisoformat(first.pop("timestamp")).timestamp()
    assert first == {
        "level": "info",
        "logger": "guardwire_server.test",
        "event": "loaded a model\nin 3 s",
        "num_layers": 28,
    }
    assert second["timestamp"].endswith("Z")
    assert (second["level"], second["logger"], second["event"]) == ("warning", "some_library.module", "beware")


def test_a_traceback_is_text_without_variables() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    log_failure()
    (line,) = json_lines(stream)
    assert line["exception"].startswith("Traceback (most recent call last):")
    assert "fail_with_a_secret_in_a_variable" in line["exception"]
    assert line["exception"].endswith("RuntimeError: it failed")
    assert SECRET not in stream.getvalue()


def test_a_traceback_on_a_terminal_has_no_variables_either() -> None:
    stream = Terminal()
    configure_logging(stream=stream)
    log_failure()
    assert "Traceback (most recent call last):" in stream.getvalue()
    assert "RuntimeError: it failed" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_a_terminal_gets_text_with_colours() -> None:
    stream = Terminal()
    configure_logging(stream=stream)
    logger.warning("beware of %s", "the dog")
    (line,) = stream.getvalue().splitlines()
    assert "beware of the dog" in line
    assert "\x1b[" in line


def test_text_can_be_asked_for() -> None:
    stream = io.StringIO()
    configure_logging("text", stream=stream)
    logger.warning("beware of the dog")
    (line,) = stream.getvalue().splitlines()
    timestamp, rest = line.split(" ", 1)
    assert datetime.fromisoformat(timestamp).tzinfo == UTC
    assert rest.split() == ["[warning", "]", "beware", "of", "the", "dog", "[guardwire_server.test]"]


def test_json_can_be_asked_for_on_a_terminal() -> None:
    stream = Terminal()
    configure_logging("json", stream=stream)
    logger.warning("beware")
    assert json_lines(stream)[0]["event"] == "beware"


@pytest.mark.parametrize(
    ("level", "own", "of_libraries"),
    [
        ("debug", ["debug", "info", "warning", "error"], ["info", "warning", "error"]),
        ("info", ["info", "warning", "error"], ["info", "warning", "error"]),
        ("warning", ["warning", "error"], ["warning", "error"]),
        ("error", ["error"], ["error"]),
    ],
)
def test_levels(level: str, own: list[str], of_libraries: list[str]) -> None:
    stream = io.StringIO()
    configure_logging("json", level, stream)
    for each in (logger, library_logger):
        for log in (each.debug, each.info, each.warning, each.error):
            log("said")
    lines = json_lines(stream)
    assert [line["level"] for line in lines if line["logger"] == logger.name] == own
    assert [line["level"] for line in lines if line["logger"] == library_logger.name] == of_libraries


def test_called_again_it_replaces_what_it_did() -> None:
    former, latter = io.StringIO(), io.StringIO()
    configure_logging("json", stream=former)
    configure_logging("json", stream=latter)
    logger.info("said once")
    assert not former.getvalue()
    assert len(json_lines(latter)) == 1


def test_warnings_and_uncaught_exceptions_are_lines_too() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # once more: `catch_warnings` has put back what shows them
        warnings.warn("it is deprecated", DeprecationWarning, stacklevel=1)
    try:
        fail_with_a_secret_in_a_variable()
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=fail_with_a_secret_in_a_variable, name="worker")
    thread.start()
    thread.join()
    warned, uncaught, uncaught_in_thread = json_lines(stream)
    assert "it is deprecated" in warned["event"]
    assert (uncaught["level"], uncaught["event"]) == ("critical", "uncaught exception")
    assert uncaught["exception"].endswith("RuntimeError: it failed")
    assert uncaught_in_thread["event"] == "uncaught exception in thread worker"
    assert uncaught_in_thread["exception"].endswith("RuntimeError: it failed")
    assert SECRET not in stream.getvalue()


def test_a_keyboard_interrupt_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not stream.getvalue()
    assert "KeyboardInterrupt" in capsys.readouterr().err


async def test_lines_in_a_span_name_it(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    tracer = start_telemetry(otlp_endpoint=sink.endpoint).tracer_provider.get_tracer("t")
    with tracer.start_as_current_span("call"):
        logger.warning("inside")
    logger.warning("outside")
    inside, outside = json_lines(stream)
    span = await sink.span("call")
    assert (inside["trace_id"], inside["span_id"]) == (span.item.trace_id.hex(), span.item.span_id.hex())
    assert not {"trace_id", "span_id"} & outside.keys()
    record, other = await sink.log(body="inside"), await sink.log(body="outside")
    assert (record.item.trace_id, record.item.span_id) == (span.item.trace_id, span.item.span_id)
    assert not other.item.trace_id.strip(b"\0")


async def test_lines_arrive_as_log_records(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    configure_logging("json", "debug", io.StringIO())
    start_telemetry(otlp_endpoint=sink.endpoint)
    severities: list[tuple[Callable[..., None], int, str]] = [
        (logger.debug, SeverityNumber.SEVERITY_NUMBER_DEBUG, "DEBUG"),
        (logger.info, SeverityNumber.SEVERITY_NUMBER_INFO, "INFO"),
        (logger.warning, SeverityNumber.SEVERITY_NUMBER_WARN, "WARNING"),
        (logger.error, SeverityNumber.SEVERITY_NUMBER_ERROR, "ERROR"),
        (logger.critical, SeverityNumber.SEVERITY_NUMBER_FATAL, "CRITICAL"),
    ]
    for log, number, text in severities:
        log("as %s", text, extra={"setting": "tls_cert", "num": 3})
        record = await sink.log(body=f"as {text}", setting="tls_cert", num=3)
        assert (record.item.severity_number, record.item.severity_text) == (number, text)
        assert record.scope.name == logger.name
        assert record.item.time_unix_nano


async def test_an_exception_arrives_without_variables(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    start_telemetry(otlp_endpoint=sink.endpoint)
    log_failure()
    record = await sink.log(body="call failed", exception__type="RuntimeError", exception__message="it failed")
    assert "fail_with_a_secret_in_a_variable" in record.attributes["exception.stacktrace"]
    assert SECRET not in str(sink.messages)


async def test_what_opentelemetry_logs_is_not_exported(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    start_telemetry(otlp_endpoint=sink.endpoint)
    logging.getLogger("opentelemetry.sdk._shared_internal").warning("Queue full, dropping Log.")
    logging.getLogger("opentelemetry_lookalike").warning("of somebody else")
    await sink.log(body="of somebody else")
    assert [log.scope.name for log in sink.logs] == ["opentelemetry_lookalike"]


def test_without_a_collector_no_handler_is_left(start_telemetry: StartTelemetry) -> None:
    handlers = logging.getLogger().handlers[:]
    telemetry: Telemetry = start_telemetry(otlp_endpoint="http://127.0.0.1:1")
    assert logging.getLogger().handlers != handlers
    telemetry.shutdown(0)
    assert logging.getLogger().handlers == handlers
    assert not trace.get_current_span().is_recording()
