"""How large a request may be."""

from __future__ import annotations

from google.protobuf.message import Message

from guardwire.errors import invalid_request

MAX_REQUEST_BYTES = (1 << 22) - 64
"""What fits into gRPC's 4 MiB with what a message of many streams adds.

A server refuses more with RESOURCE_EXHAUSTED, which looks as if it were full and trying again could help, and ends the
whole call with it.
"""


def check_size(request: Message, field: str) -> None:
    """Raises InvalidRequest when a request is larger than a server takes."""
    num_bytes = request.ByteSize()
    if num_bytes > MAX_REQUEST_BYTES:
        message = f"{field}: {num_bytes} bytes are too many for one message, at most {MAX_REQUEST_BYTES}"
        raise invalid_request(message, field)
