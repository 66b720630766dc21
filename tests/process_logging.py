"""Logging of the whole process, put back as it was."""

import logging
import sys
import threading
from collections.abc import Iterator

import pytest


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Undoes what `configure_logging` does to the process."""
    root, own = logging.getLogger(), logging.getLogger("guardwire_server")
    handlers, levels = root.handlers[:], (root.level, own.level)
    hooks = sys.excepthook, threading.excepthook
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])
    sys.excepthook, threading.excepthook = hooks
