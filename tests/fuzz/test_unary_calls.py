"""Any request of the other calls is answered, or refused as the contract says."""

from collections.abc import AsyncIterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardwire.v1 import moderation_pb2 as pb
from tests.fuzz.conftest import StartTrial
from tests.fuzz.effort import NUM_AT_ONCE, TIMEOUT_S, num_batches, sequence_settings
from tests.fuzz.endings import GONE, check_refusal
from tests.fuzz.sequences import Request, sequences
from tests.fuzz.served import Code, Faults
from tests.fuzz.told import RISKS
from tests.fuzz.tried_server import TriedServer
from tests.rpc.stream_call import Failure

NUM_REQUESTS = 300


@pytest.fixture
async def trial(start_trial: StartTrial) -> AsyncIterator[TriedServer]:
    """A server that judges fewer conversations at a time than are sent to it."""
    trial = await start_trial(max_classify_calls=4, max_context_tokens=1024, kv_memory_gib=0.005)
    yield trial
    assert trial.has_failed or trial.num_batches >= num_batches(NUM_REQUESTS)


@pytest.mark.timeout(TIMEOUT_S)
@sequence_settings(NUM_REQUESTS)
@given(data=st.data())
async def test_any_request(trial: TriedServer, data: st.DataObject) -> None:
    await trial.try_all(data.draw(sequences(trial.maker.request, NUM_AT_ONCE)), check_request)


async def check_request(trial: TriedServer, request: Request) -> None:
    """One call: its answer, or its status."""
    may_be_late = GONE if request.is_hasty else set()
    try:
        match request.message:
            case pb.ClassifyRequest():
                faults = trial.served.classify_faults(request.message)
                # A conversation may be too long, and the other calls of the batch may fill the server.
                may_be_late = may_be_late | {Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED}
                check_verdict(await trial.server.stub.Classify(request.message, timeout=request.timeout_s))
            case pb.GetTokenizerRequest():
                is_listed = request.message.model_kind in pb.ModelKind.values()
                faults = set() if is_listed else {Code.INVALID_ARGUMENT}
                call = trial.server.stub.GetTokenizer(request.message, timeout=request.timeout_s)
                check_tokenizer(trial, request.message, [piece async for piece in call])
            case message:
                assert isinstance(message, pb.GetServerInfoRequest)
                faults = set()
                info = await trial.server.stub.GetServerInfo(message, timeout=request.timeout_s)
                assert info.models
    except grpc.aio.AioRpcError as error:
        check_failure(Failure.of(error), faults, may_be_late)
    else:
        assert not faults


def check_failure(failure: Failure, faults: Faults, may_be_late: Faults) -> None:
    if not failure.reason:
        assert failure.code in may_be_late & GONE
        return
    check_refusal(failure, faults or may_be_late, {"messages", "model", "policy", "model_kind"})
    assert (failure.code is Code.RESOURCE_EXHAUSTED) is (failure.retry_after_s is not None)


def check_verdict(response: pb.ClassifyResponse) -> None:
    assert response.action in pb.Action.values()[1:]
    assert response.explanation
    assert (response.risk_level in RISKS) is response.judged
    assert response.usage.num_prompt_tokens
    assert response.usage.num_forward_passes


def check_tokenizer(trial: TriedServer, request: pb.GetTokenizerRequest, pieces: list[pb.GetTokenizerResponse]) -> None:
    models = trial.server.models
    model = models.gen if request.model_kind == pb.MODEL_KIND_GEN else models.stream
    assert model
    assert b"".join(piece.chunk for piece in pieces) == model.tokenizer.json_bytes
    assert pieces[0].num_bytes == len(model.tokenizer.json_bytes)
    assert pieces[0].tokenizer_fingerprint == model.tokenizer.fingerprint
