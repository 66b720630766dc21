"""The ready file, by which scripts and supervisors learn that a server serves, and where."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from guardwire_server.core.errors import StartupError


@contextlib.contextmanager
def claim_ready_file(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Gives what writes the ready file; before that and after the block there is none, not even an older one.

    Raises:
        StartupError: If there can be no such file.
    """
    if path is None:
        yield lambda _: None
        return

    draft = path.with_name(f"{path.name}.draft") if path.name else path

    def write(address: str) -> None:
        draft.write_text(address + "\n")
        draft.replace(path)  # whoever sees the file sees all of it

    try:
        path.unlink(missing_ok=True)
        draft.touch()  # finds out now, not when the models are loaded
    except OSError as error:
        raise StartupError(f"ready_file: {path} cannot be written: {error.strerror}") from None
    try:
        yield write
    finally:
        for file in (path, draft):
            file.unlink(missing_ok=True)
