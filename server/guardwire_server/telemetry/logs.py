"""How log lines look: JSON, one object a line, or text for people.

Everything logs through Python's logging, libraries included; structlog renders it. Tracebacks never show the values of
variables: those of a failed call can hold its text.
"""

import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, ProcessorReturnValue

from guardwire_server.telemetry.log_fields import extra_fields

logger = logging.getLogger(__name__)

OWN_LOGGER = "guardwire_server"
"""Above all loggers of this package."""


def configure_logging(
    log_format: Literal["auto", "text", "json"] = "auto", log_level: str = "info", stream: TextIO | None = None
) -> None:
    """Sends the process's log lines, warnings and uncaught exceptions to `stream`; called again, replaces what it did.

    Args:
        log_format: `auto` is text on a terminal and JSON elsewhere.
        log_level: The least level of our own lines that is logged; libraries' are never logged below `info`.
        stream: Default: standard error.
    """
    stream = sys.stderr if stream is None else stream
    is_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    handler = _Handler(stream)
    handler.setFormatter(_formatter(is_json=is_json, has_colours=stream.isatty()))
    root = logging.getLogger()
    for former in [former for former in root.handlers if isinstance(former, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    level = logging.getLevelNamesMapping()[log_level.upper()]
    root.setLevel(max(level, logging.INFO))
    logging.getLogger(OWN_LOGGER).setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


class _Handler(logging.StreamHandler[TextIO]):
    """The one that `configure_logging` has put in place."""


def _formatter(*, is_json: bool, has_colours: bool) -> logging.Formatter:
    if is_json:
        rendering = (
            structlog.processors.ExceptionRenderer(),  # traceback's own format: no variables
            structlog.processors.JSONRenderer(),
        )
        return structlog.stdlib.ProcessorFormatter(processors=(_describe, *rendering))
    # The default formatter for exceptions, with rich installed, prints every variable of every frame.
    console = structlog.dev.ConsoleRenderer(
        colors=has_colours, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
    )
    return structlog.stdlib.ProcessorFormatter(processors=(_describe, console))


def _describe(_: object, __: str, event: EventDict) -> ProcessorReturnValue:
    """The fields of a line, in the order in which people read them."""
    record: logging.LogRecord = event["_record"]
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    described: EventDict = {
        "timestamp": time.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event["event"],
    }
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        described["trace_id"] = trace.format_trace_id(context.trace_id)
        described["span_id"] = trace.format_span_id(context.span_id)
    described.update({key: value for key, value in extra_fields(record).items() if key not in described})
    if record.stack_info:
        described["stack"] = record.stack_info
    if "exc_info" in event:
        described["exc_info"] = event["exc_info"]  # for the renderer
    return described


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is None or issubclass(arguments.exc_type, SystemExit):
        return
    name = arguments.thread.name if arguments.thread else "unknown"
    trace = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    logger.critical("uncaught exception in thread %s", name, exc_info=trace)
