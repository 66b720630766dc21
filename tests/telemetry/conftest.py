"""What the tests of telemetry share: a collector, telemetry that exports to it at once, logging put back as it was."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest

from guardwire_server.telemetry.providers import Telemetry, TelemetrySettings
from guardwire_server.telemetry.server import ServerTelemetry
from tests.process_logging import restored_logging  # noqa: F401 a fixture
from tests.rpc.conftest import checkpoints, loaded_models, start_server  # noqa: F401 fixtures
from tests.rpc.running_server import RunningServer, StartServer
from tests.telemetry.otlp_sink import OtlpSink

VERSION = "1.2.3"
SHUTDOWN_TIMEOUT_S = 20.0


class StartTelemetry(Protocol):
    """Starts telemetry with these settings; it is shut down when the test ends."""

    def __call__(self, **settings: Any) -> Telemetry: ...  # noqa: ANN401 settings of all types


@pytest.fixture(autouse=True)
def otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's variables: none but those that make batches leave at once."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "20")


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """Every thread that a test's telemetry has started must have ended."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before and _is_ours(thread)]
    for thread in left:
        thread.join(SHUTDOWN_TIMEOUT_S)
    assert not [thread.name for thread in left if thread.is_alive()]


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith(("Otel", "metrics-page", "telemetry"))


@pytest.fixture
async def sink() -> AsyncIterator[OtlpSink]:
    async with OtlpSink() as running:
        yield running


@pytest.fixture
async def start_telemetry() -> AsyncIterator[StartTelemetry]:
    async with AsyncExitStack() as started:

        def start(**settings: Any) -> Telemetry:  # noqa: ANN401
            values: dict[str, Any] = {"version": VERSION, "metrics_interval_s": 0.05}
            telemetry = Telemetry(TelemetrySettings(**(values | settings)))
            telemetry.start()
            started.push_async_callback(asyncio.to_thread, telemetry.shutdown, SHUTDOWN_TIMEOUT_S)
            return telemetry

        yield start


@pytest.fixture
async def observed(
    sink: OtlpSink,
    start_telemetry: StartTelemetry,
    start_server: StartServer,  # noqa: F811 the fixture
) -> RunningServer:
    """A server that records everything, every engine step's span included, and exports it to the sink."""
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint, metrics_listen="127.0.0.1:0")
    return await start_server(telemetry=recording_into(telemetry))


def recording_into(telemetry: Telemetry) -> ServerTelemetry:
    """What a server records with, every engine step's span included."""
    return ServerTelemetry(
        VERSION,
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        logger_provider=telemetry.logger_provider,
        step_trace_ratio=1.0,
    )
