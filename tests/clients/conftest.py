from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from guardwire import AsyncClient
from tests.clients.fake_server import FakeServer, running
from tests.clients.recorded_spans import RecordedSpans


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    """The fake server, which must have no call left when the test is over."""
    async with running(FakeServer()) as fake_server:
        yield fake_server


@pytest.fixture
def target(fake: FakeServer) -> str:
    """The address of the server under test."""
    return fake.target


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(target) as async_client:
        yield async_client


@pytest.fixture
def spans() -> Iterator[RecordedSpans]:
    """The spans of clients with its provider; each must have ended once when the test is over."""
    recorded = RecordedSpans()
    yield recorded
    recorded.provider.shutdown()
    assert recorded.open
    assert not any(recorded.open.values())
