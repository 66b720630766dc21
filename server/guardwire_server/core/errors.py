"""Every error that Guardwire raises itself, as a tree by whose fault it is.

`reason` is the stable name that callers may switch on; rpc/status.py maps each leaf to a gRPC status, in one total
table. Messages name the field and the limit, and never repeat what a caller wrote.
"""


class GuardwireError(Exception):
    """The root. `message` is for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StartupError(GuardwireError):
    """The server cannot start: a checkpoint, a setting or the device is not as it must be."""


class RequestError(GuardwireError):
    """Something that ends a request; `reason` is its stable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CallerError(RequestError):
    """The caller's fault: the same request fails again. `field` is the path of the field, as `tokens.token_ids[3]`."""

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(reason, f"{field}: {message}" if field else message)
        self.field = field


class InvalidField(CallerError):
    """A value that no state of the server could accept."""


class OutOfRange(CallerError):
    """A value that does not fit what this stream or the model's context holds now."""


class WrongState(CallerError):
    """A message that is not allowed at this point of the stream, or a tokenizer that is not the model's."""


class UnknownName(CallerError):
    """A model or policy that this server does not have."""


class NotServed(CallerError):
    """A part of the contract that this server does not serve."""


class Unauthenticated(CallerError):
    """The caller showed no credential, or one that is not valid."""


class PermissionDenied(CallerError):
    """The caller's credential is valid, but does not let him in here."""


class StreamTimeout(RequestError):
    """The stream pushed, read or lasted longer than the limits allow; everything before was judged."""


class DeadlinePassed(RequestError):
    """The call's own deadline passed before it was judged."""


class Abandoned(RequestError):
    """The caller went away, or ended its input without `finish`."""


class CapacityError(RequestError):
    """The server is full or stopping: the same request may succeed after `retry_after_s` seconds."""

    def __init__(self, reason: str, message: str, retry_after_s: float) -> None:
        super().__init__(reason, message)
        self.retry_after_s = retry_after_s


class Overloaded(CapacityError):
    """A limit on concurrent work is reached."""


class Draining(CapacityError):
    """The server is stopping and takes nothing new."""


class EngineError(RequestError):
    """The server's fault: a step failed or the device is lost. `request_id` finds it in the server's log."""

    def __init__(self, reason: str, message: str, request_id: str = "") -> None:
        super().__init__(reason, message)
        self.request_id = request_id


class EngineUnavailable(EngineError):
    """The device is lost or stalled; another server may help, this one will not."""
