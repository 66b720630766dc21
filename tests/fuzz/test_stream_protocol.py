"""Any sequence of messages on ModerateStream ends as the contract says, and harms nobody."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conftest import StartTrial
from tests.fuzz.effort import NUM_AT_ONCE, TIMEOUT_S, num_batches, sequence_settings
from tests.fuzz.live_calls import check_stream
from tests.fuzz.sequences import sequences
from tests.fuzz.tried_server import TriedServer

NUM_SEQUENCES = 1300


@pytest.fixture
async def trial(start_trial: StartTrial) -> AsyncIterator[TriedServer]:
    """A server that is full when a batch and the bystander are all open at once."""
    trial = await start_trial(max_sessions=NUM_AT_ONCE)
    yield trial
    assert trial.has_failed or trial.num_batches >= num_batches(NUM_SEQUENCES)


@pytest.mark.timeout(TIMEOUT_S)
@sequence_settings(NUM_SEQUENCES)
@given(data=st.data())
async def test_any_sequence_of_messages(trial: TriedServer, data: st.DataObject) -> None:
    await trial.try_all(data.draw(sequences(trial.maker.stream, NUM_AT_ONCE)), check_stream)
