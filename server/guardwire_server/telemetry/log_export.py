"""Lines of Python's logging as OpenTelemetry log records."""

import logging

from opentelemetry._logs import LoggerProvider, LogRecord, SeverityNumber

from guardwire_server.telemetry.log_fields import extra_fields

_SEVERITIES = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
)


class OtlpLogHandler(logging.Handler):
    """Hands log lines to a provider, correlated with the span that is current. Owner: `Telemetry`.

    Lines of OpenTelemetry itself are passed over: each would be one more record for an exporter that complains.
    """

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """Puts a record into the queue of those to be sent."""
        if record.name.partition(".")[0] == "opentelemetry":
            return
        try:
            self._provider.get_logger(record.name).emit(_translate(record))
        except Exception:
            self.handleError(record)


def _translate(record: logging.LogRecord) -> LogRecord:
    severities = (severity for level, severity in _SEVERITIES if record.levelno >= level)
    fields = extra_fields(record).items()
    return LogRecord(
        timestamp=round(record.created * 1e9),
        severity_text=record.levelname,
        severity_number=next(severities, SeverityNumber.DEBUG),
        body=record.getMessage(),
        attributes={key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in fields},
        exception=record.exc_info[1] if record.exc_info else None,
    )
