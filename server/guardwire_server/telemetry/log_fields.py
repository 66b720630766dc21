"""What a log record says beyond its message."""

import logging
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller of the logger passed as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
