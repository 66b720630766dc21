"""The message that is filled anew for every verdict says what a new one would."""

from array import array
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core import events as ev
from guardwire_server.core.verdict import Category, RiskLevel
from guardwire_server.rpc.verdict_messages import SingleVerdict, write_verdicts
from tests.core.fakes import packed, verdict

verdicts = st.builds(verdict, st.sampled_from(RiskLevel), st.floats(0.5, 1.0), st.sampled_from(Category))
updates = st.builds(
    ev.TokenVerdicts, st.integers(0, 2**32 - 1), st.builds(packed, st.lists(verdicts, min_size=1, max_size=1))
)


@given(st.lists(updates, min_size=1, max_size=5))
def test_a_message_filled_anew_is_like_a_new_one(told: Sequence[ev.TokenVerdicts]) -> None:
    single = SingleVerdict()
    for update in told:
        fresh = pb.ModerateStreamResponse()
        write_verdicts(update, fresh.verdicts)
        filled = single.response(update)
        assert filled is not None
        assert filled.SerializeToString(deterministic=True) == fresh.SerializeToString(deterministic=True)


def test_what_is_more_than_one_verdict_is_left_to_others() -> None:
    single, safe = SingleVerdict(), verdict(RiskLevel.SAFE)
    assert single.response(ev.TokenVerdicts(0, packed([safe, safe]))) is None
    assert single.response(ev.TokenVerdicts(0, packed([safe]), text_end_offsets=array("Q", (5,)))) is None
    assert single.response(ev.TokenVerdicts(0, packed([safe]), scaffold=b"\1")) is None
