"""Files that may change while the server runs: certificates, access rules, policies.

Theory of operation. Every `interval_s` the identity of each file (inode, size, time of change) is compared with that of
the last look; Kubernetes replaces mounted files by swapping a symbolic link, which changes the inode. A file that has
changed is read and checked as at start. What is wrong is logged as an error, once for each change, and the old content
stays in force: a typing error must not let everybody in, or nobody.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from guardwire_server.core.errors import StartupError

logger = logging.getLogger(__name__)

T = TypeVar("T")

Identity = tuple[int, int, int] | None
"""Inode, size and time of change in nanoseconds; None: there is no such file."""


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """What was read, and all files that it was read from."""

    value: T
    paths: tuple[Path, ...]


class ReloadedFile(Generic[T]):
    """What a file, or some that belong together, say now. Owner: the `Reloader`, once it runs.

    Invariant: `value` is always the result of a `load` that succeeded.
    """

    def __init__(
        self, setting: str, load: Callable[[], Loaded[T]], on_change: Callable[[T], None] | None = None
    ) -> None:
        """Reads for the first time.

        Args:
            setting: The setting that names the file, for the log and the metric.
            load: Reads and checks; raises StartupError, naming file and place, for what is wrong.
            on_change: Called on the event loop with every new value but the first.

        Raises:
            StartupError: From `load`.
        """
        self.setting = setting
        self._load = load
        self._on_change = on_change
        loaded = load()
        self.value = loaded.value
        self._paths = loaded.paths
        # Unknown, so that the first look reads again: a file may have changed between its reading and now.
        self._identities: tuple[Identity, ...] = ()
        self._refusal: str | None = None  # why what the files say now is not in force

    @property
    def is_refused(self) -> bool:
        """Whether what the files say now is not in force, because something is wrong with it."""
        return self._refusal is not None

    def reload(self) -> Loaded[T] | None:
        """Reads again if a file has changed; None if it says the same. Blocks, so call it beside the event loop.

        What was refused is read each time: a file that it names may have come since, or a certificate's day.

        Raises:
            StartupError: From `load`; not again as long as neither the files nor the error change. So with a fault of
                ours, whatever it raises.
        """
        identities = _identities(self._paths)
        has_changed = identities != self._identities
        if not has_changed and self._refusal is None:
            return None
        self._identities = identities
        try:
            loaded = self._load()
        except Exception as error:
            was_told, self._refusal = self._refusal == str(error), str(error)
            if was_told and not has_changed:
                return None
            raise
        self._refusal = None
        if loaded.paths != self._paths:
            self._paths, self._identities = loaded.paths, ()
        return None if loaded.value == self.value else loaded

    def take(self, loaded: Loaded[T]) -> None:
        """Puts what was read in force, on the event loop."""
        if self._on_change:
            self._on_change(loaded.value)
        self.value = loaded.value


class Reloader:
    """Looks at files again and again. Thread: the event loop; files are read beside it."""

    def __init__(
        self,
        files: Sequence[ReloadedFile[Any]],
        interval_s: float,
        on_reload: Callable[[str, bool], None] = lambda _setting, _is_valid: None,
    ) -> None:
        """Watches files; `on_reload` is told each setting whose file has changed, and whether it was taken."""
        self._files = tuple(files)
        self._interval_s = interval_s
        self._on_reload = on_reload

    @property
    def is_refused(self) -> dict[str, bool]:
        """Whether what the files say now is not in force, by setting. May be read from any thread."""
        return {file.setting: file.is_refused for file in self._files}

    async def run(self) -> None:
        """Looks every interval, until cancelled."""
        while self._files:
            await asyncio.sleep(self._interval_s)
            await self.check()

    async def check(self) -> None:
        """Looks once at every file."""
        for file in self._files:
            was_refused = file.is_refused
            try:
                changed = await asyncio.to_thread(file.reload)
                if changed:
                    file.take(changed)
            except StartupError as error:
                logger.error("%s: the changed file is not taken, the old content stays: %s", file.setting, error)
                self._on_reload(file.setting, False)
            except Exception:
                logger.exception("%s: the changed file could not be taken, the old content stays", file.setting)
                self._on_reload(file.setting, False)
            else:
                if changed or (was_refused and not file.is_refused):  # put back as it was, it is in force again
                    logger.info("%s: reloaded", file.setting)
                    self._on_reload(file.setting, True)


def _identities(paths: Sequence[Path]) -> tuple[Identity, ...]:
    return tuple(_identity(path) for path in paths)


def _identity(path: Path) -> Identity:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
