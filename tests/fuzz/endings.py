"""How one stream may end, by its contract and by what its caller did last."""

from collections.abc import Iterable

from guardwire.v1 import moderation_pb2 as pb
from tests.fuzz.contract import Contract
from tests.fuzz.sequences import Ending
from tests.fuzz.served import Code, Faults
from tests.fuzz.told import Told
from tests.rpc.stream_call import Failure

GONE = {Code.CANCELLED, Code.DEADLINE_EXCEEDED}
"""How a call ends whose caller has left, if it had not ended before."""

UNREADABLE = "MALFORMED_REQUEST"
"""The reason of what is no message: there is no field to name."""

MUST_NAME_A_FIELD = (Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE)


def check_end(ending: Ending, contract: Contract, told: Told, failure: Failure | None) -> None:
    """Whether a stream ended as the contract says it does after these messages."""
    told.check_bounds(contract)
    if failure is None:
        assert told.summary
        if told.summary.end_reason == pb.END_REASON_BLOCKED:
            assert contract.may_be_blocked
            return
        assert contract.is_finished
        assert told.summary.num_tokens == len(contract.ids)
        told.check_complete(contract)
        return
    if failure.code is Code.RESOURCE_EXHAUSTED:
        assert failure.reason == "TOO_MANY_SESSIONS"
        assert failure.retry_after_s
        assert not told.kinds
        return
    if not failure.reason:  # the caller's own library says so; the summary may have come just before
        assert failure.code in GONE
        assert ending in (Ending.CANCEL, Ending.DEADLINE)
        return
    assert told.summary is None
    check_refusal(failure, *_expected(contract))
    if contract.faults:
        told.check_complete(contract)


def check_refusal(failure: Failure, codes: Faults, kinds: Iterable[str]) -> None:
    """Whether a refusal has a status that fits, a reason, and the field at fault."""
    assert failure.code in codes
    assert failure.reason
    assert not failure.request_id
    if failure.reason == UNREADABLE:
        assert not failure.field
    elif failure.code in MUST_NAME_A_FIELD or failure.field:
        assert failure.field.partition(".")[0].partition("[")[0] in kinds
        assert failure.message.startswith(f"{failure.field}: ")


def _expected(contract: Contract) -> tuple[Faults, set[str]]:
    """The statuses of a stream whose input has ended, and the fields that they may name."""
    if contract.faults:
        return contract.faults, contract.kinds
    if contract.options is None:
        return {Code.FAILED_PRECONDITION}, {"open"}
    return ({Code.CANCELLED} if not contract.is_finished else set()), set()
