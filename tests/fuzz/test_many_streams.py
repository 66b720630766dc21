"""Any sequence of messages on ModerateStreams ends each of its streams as the contract says, and harms nobody."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conftest import StartTrial
from tests.fuzz.effort import NUM_AT_ONCE, TIMEOUT_S, num_batches, sequence_settings
from tests.fuzz.many_contract import check_many_streams
from tests.fuzz.sequences import sequences
from tests.fuzz.tried_server import TriedServer

NUM_SEQUENCES = 500


@pytest.fixture
async def trial(start_trial: StartTrial) -> AsyncIterator[TriedServer]:
    """A server that is full when most calls of a batch have all their streams open at once."""
    trial = await start_trial(max_sessions=2 * NUM_AT_ONCE)
    yield trial
    assert trial.has_failed or trial.num_batches >= num_batches(NUM_SEQUENCES)


@pytest.mark.timeout(TIMEOUT_S)
@sequence_settings(NUM_SEQUENCES)
@given(data=st.data())
async def test_any_sequence_of_messages(trial: TriedServer, data: st.DataObject) -> None:
    await trial.try_all(data.draw(sequences(trial.maker.many_streams, NUM_AT_ONCE)), check_many_streams)
