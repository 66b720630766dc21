"""SIGINT while the models are being loaded."""

import asyncio
import signal
from pathlib import Path
from typing import NoReturn

import pytest
import uvloop

from guardwire_server import serving
from guardwire_server.config import ServerConfig


def interrupted(*_: object) -> NoReturn:
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("it went on")


def test_it_ends_the_server_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving, "load_models", interrupted)
    ready_file = tmp_path / "ready"
    with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving.serve(ServerConfig(stream_model="demo", ready_file=ready_file)))
    assert not ready_file.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_comes_later_is_handled_in_good_order() -> None:
    async def handler_within_and_after() -> None:
        ours = signal.getsignal(signal.SIGINT)
        with serving._interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is ours is not signal.default_int_handler

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(handler_within_and_after())
