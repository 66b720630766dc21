"""Faults of our own: logged here once, and told to callers as no more than where to find them in the log."""

import logging
import uuid

from guardwire_server.core.errors import EngineError

logger = logging.getLogger(__name__)


def internal_error(what: str) -> EngineError:
    """Logs the exception being handled; returns what to tell the caller: no more than where to find it."""
    request_id = uuid.uuid4().hex
    logger.exception("%s, request_id=%s", what, request_id)
    return EngineError("INTERNAL", f"the server failed (request {request_id})", request_id)


def step_failed(num_sequences: int) -> EngineError:
    """Logs the exception of a failed step; returns what to tell the callers of its sequences."""
    request_id = uuid.uuid4().hex
    logger.exception("step failed, request_id=%s num_sequences=%d", request_id, num_sequences)
    return EngineError("STEP_FAILED", f"the step that was to judge this failed (request {request_id})", request_id)
