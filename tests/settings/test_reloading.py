"""Files that change while the server runs: what is noticed, what is taken, what is said about the rest."""

import asyncio
import contextlib
import itertools
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from guardwire_server.core.errors import StartupError
from guardwire_server.core.policy_set import PolicySet
from guardwire_server.policy_file import load_policies
from guardwire_server.reloading import Loaded, ReloadedFile, Reloader

WAIT_S = 20.0
_times_ns = itertools.count(10**18, 10**9)


def write(path: Path, text: str) -> None:
    """Replaces the file at once, by one of a time that no other version of it has."""
    draft = path.with_name("draft")
    draft.write_text(text)
    time_ns = next(_times_ns)
    os.utime(draft, ns=(time_ns, time_ns))
    draft.rename(path)


def load_number(path: Path) -> Loaded[int]:
    """Spaces around a number do not change it."""
    try:
        return Loaded(int(path.read_text()), (path,))
    except OSError:
        raise StartupError(f"{path}: cannot be read") from None
    except ValueError:
        raise StartupError(f"{path}:1: not a number") from None


@dataclass
class Watched:
    """One file that is watched by the number in it, and what was told about it."""

    path: Path
    caplog: pytest.LogCaptureFixture
    changes: list[int] = field(default_factory=list)
    reports: list[tuple[str, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.file = ReloadedFile("a_file", lambda: load_number(self.path), self.changes.append)
        self.reloader = Reloader([self.file], 0.001, lambda setting, is_taken: self.reports.append((setting, is_taken)))

    async def check(self) -> list[str]:
        """Looks twice, which must be the same as once; returns what was logged."""
        self.caplog.clear()
        await self.reloader.check()
        logged = [record.getMessage() for record in self.caplog.records]
        await self.reloader.check()
        assert len(self.caplog.records) == len(logged)
        return logged


@pytest.fixture
def watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Watched:
    caplog.set_level(logging.INFO, "guardwire_server.reloading")
    write(tmp_path / "number", "1")
    return Watched(tmp_path / "number", caplog)


async def test_a_changed_file_is_taken(watched: Watched) -> None:
    assert await watched.check() == []
    write(watched.path, "2")
    assert await watched.check() == ["a_file: reloaded"]
    assert (watched.file.value, watched.changes, watched.reports) == (2, [2], [("a_file", True)])


async def test_a_file_that_is_written_in_place_is_taken(watched: Watched) -> None:
    await watched.check()
    watched.path.write_text("12")
    assert await watched.check() == ["a_file: reloaded"]
    assert watched.changes == [12]


async def test_a_change_between_the_first_reading_and_the_first_look_is_taken(watched: Watched) -> None:
    write(watched.path, "2")
    assert await watched.check() == ["a_file: reloaded"]
    assert watched.changes == [2]


async def test_a_file_that_says_the_same_in_other_words_changes_nothing(watched: Watched) -> None:
    write(watched.path, "  1\n")
    assert await watched.check() == []
    assert (watched.changes, watched.reports) == ([], [])


async def test_an_invalid_file_keeps_the_old_content_and_is_told_once(watched: Watched) -> None:
    told = f"a_file: the changed file is not taken, the old content stays: {watched.path}:1: not a number"
    write(watched.path, "many")
    assert await watched.check() == [told]
    assert {record.levelno for record in watched.caplog.records} == {logging.ERROR}
    assert (watched.file.value, watched.changes, watched.reports) == (1, [], [("a_file", False)])
    assert watched.reloader.is_refused == {"a_file": True}
    write(watched.path, "more")  # another mistake
    assert await watched.check() == [told]
    write(watched.path, "3")
    assert await watched.check() == ["a_file: reloaded"]
    assert watched.reloader.is_refused == {"a_file": False}
    assert (watched.file.value, watched.changes) == (3, [3])
    assert watched.reports == [("a_file", False), ("a_file", False), ("a_file", True)]


async def test_a_file_that_is_away_for_a_while(watched: Watched) -> None:
    told = f"a_file: the changed file is not taken, the old content stays: {watched.path}: cannot be read"
    watched.path.unlink()
    assert await watched.check() == [told]
    assert watched.file.value == 1
    write(watched.path, "1")
    assert await watched.check() == ["a_file: reloaded"]  # so that the error is not the log's last word
    assert watched.changes == []
    watched.path.unlink()
    assert await watched.check() == [told]
    write(watched.path, "2")
    assert await watched.check() == ["a_file: reloaded"]
    assert watched.file.value == 2


def test_a_file_that_is_invalid_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read"):
        ReloadedFile("a_file", lambda: load_number(tmp_path / "none"))


async def test_kubernetes_swaps_a_symbolic_link(tmp_path: Path) -> None:
    """What a kubelet does with a mounted ConfigMap: only the link `..data` ever changes."""

    def publish(version: str, description: str) -> None:
        directory = tmp_path / version
        directory.mkdir()
        text = f"version: 1\npolicies:\n  default:\n    description: {description}\n"
        (directory / "policies.yaml").write_text(text)
        os.utime(directory / "policies.yaml", ns=(10**18, 10**18))  # size and time are the same each time
        (tmp_path / "..data_tmp").symlink_to(version)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    publish("..2026_11_01", "one")
    path = tmp_path / "policies.yaml"
    path.symlink_to("..data/policies.yaml")
    changes: list[PolicySet] = []
    file = ReloadedFile("policies_file", lambda: load_policies(path), changes.append)
    reloader = Reloader([file], 1.0)
    await reloader.check()
    assert changes == []
    publish("..2026_11_02", "two")
    await reloader.check()
    assert [policies.policies["default"].description for policies in changes] == ["two"]
    assert file.value is changes[0]
    publish("..2026_11_03", "two")
    await reloader.check()
    assert len(changes) == 1


async def test_files_that_belong_together(tmp_path: Path) -> None:
    """The first file names the second one: both are watched, and another second one from then on."""
    first = tmp_path / "first"

    def load() -> Loaded[str]:
        second = tmp_path / first.read_text()
        return Loaded(second.read_text(), (first, second))

    write(tmp_path / "a", "1")
    write(tmp_path / "b", "2")
    write(first, "a")
    file = ReloadedFile("files", load)
    reloader = Reloader([file], 1.0)
    for path, text, expected in (
        (tmp_path / "a", "3", "3"),
        (tmp_path / "b", "4", "3"),
        (first, "b", "4"),
        (tmp_path / "b", "5", "5"),
        (tmp_path / "a", "6", "5"),
    ):
        write(path, text)
        await reloader.check()
        assert file.value == expected


async def test_what_was_refused_for_want_of_another_file_is_taken_when_that_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def load() -> Loaded[str]:
        named = tmp_path / first.read_text()
        try:
            return Loaded(named.read_text(), (first, named))
        except OSError:
            raise StartupError(f"{named}: cannot be read") from None

    write(first, "first")
    file = ReloadedFile("files", load)
    reloader = Reloader([file], 1.0)
    write(first, "second")
    for _ in range(3):
        await reloader.check()
    assert file.value == "first"
    assert caplog.messages == [f"files: the changed file is not taken, the old content stays: {second}: cannot be read"]
    write(second, "2")
    await reloader.check()
    assert file.value == "2"


async def test_a_fault_of_ours_neither_stops_the_others_nor_changes_anything(
    watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "b", "1")
    is_broken = False

    def load() -> Loaded[int]:
        if is_broken:
            raise KeyError("a bug")
        return load_number(tmp_path / "b")

    broken = ReloadedFile("broken", load)
    is_broken = True
    write(watched.path, "2")
    reports: list[tuple[str, bool]] = []
    reloader = Reloader([broken, watched.file], 1.0, lambda *report: reports.append(report))
    for _ in range(2):
        await reloader.check()
    assert reloader.is_refused == {"broken": True, "a_file": False}
    assert reports == [("broken", False), ("a_file", True)]
    assert (broken.value, watched.file.value) == (1, 2)
    assert caplog.messages.count("broken: the changed file could not be taken, the old content stays") == 1
    is_broken = False
    await reloader.check()
    assert reloader.is_refused == {"broken": False, "a_file": False}


async def test_files_are_read_beside_the_event_loop_and_taken_on_it(tmp_path: Path) -> None:
    path = tmp_path / "number"
    write(path, "1")
    readers: list[int] = []
    takers: list[int] = []

    def load() -> Loaded[int]:
        readers.append(threading.get_ident())
        return load_number(path)

    file = ReloadedFile("a_file", load, lambda _value: takers.append(threading.get_ident()))
    write(path, "2")
    await Reloader([file], 1.0).check()
    here = threading.get_ident()
    assert (readers[0], takers) == (here, [here])
    assert readers[1] != here


@contextlib.asynccontextmanager
async def running(reloader: Reloader) -> AsyncIterator[None]:
    task = asyncio.create_task(reloader.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_it_looks_by_itself_until_it_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "number"
    write(path, "1")
    told = asyncio.Event()
    file = ReloadedFile("a_file", lambda: load_number(path))
    report: Callable[[str, bool], None] = lambda _setting, _is_taken: told.set()  # noqa: E731
    async with running(Reloader([file], 0.001, report)):
        for number, text in ((2, "2"), (2, "none"), (3, "3")):
            write(path, text)
            await asyncio.wait_for(told.wait(), WAIT_S)
            told.clear()
            assert file.value == number


async def test_without_files_there_is_nothing_to_do() -> None:
    await asyncio.wait_for(Reloader([], 3600.0).run(), WAIT_S)
