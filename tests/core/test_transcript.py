from array import array

from hypothesis import given
from hypothesis import strategies as st

from guardwire_server.core.policy import Action, decide_prompt
from guardwire_server.core.transcript import Transcript
from guardwire_server.core.verdict import RiskLevel
from tests.core.fakes import ids, verdict
from tests.core.strategies import BOUNDED
from tests.core.turns import POLICY, begin_turn


def push(transcript: Transcript, *token_ids: int) -> None:
    transcript.push(ids(*token_ids), bytes(len(token_ids)))


def two_turns() -> Transcript:
    """A prompt of 10 and three tokens, then a prompt of 5 and four tokens."""
    transcript = Transcript()
    begin_turn(transcript, 10)
    push(transcript, 1, 2, 3)
    begin_turn(transcript, 5)
    push(transcript, 4, 5, 6, 7)
    return transcript


def test_positions_and_indices() -> None:
    transcript = two_turns()
    assert (transcript.num_pushed, transcript.num_positions) == (7, 22)
    assert [transcript.position_of(index) for index in (3, 6)] == [18, 21]
    assert [transcript.turn_at(position).number for position in (10, 12, 17, 18, 21)] == [0, 0, 0, 1, 1]
    assert transcript.present.first_index == 3


def test_pending_counts_tokens_and_prompts() -> None:
    transcript = two_turns()
    assert transcript.num_pending == 9
    transcript.set_prompt_verdict(transcript.turns[0], verdict(RiskLevel.SAFE))
    transcript.num_judged = 2
    assert transcript.num_pending == 6


def test_answer_tail_stays_in_the_present_answer() -> None:
    transcript = two_turns()
    assert transcript.answer_tail == ids(6, 7)
    begin_turn(transcript, 5)
    assert transcript.answer_tail == ids()
    push(transcript, 8)
    assert transcript.answer_tail == ids(8)


def test_truncation_forgets_tokens_marks_offsets_and_verdicts() -> None:
    transcript = two_turns()
    transcript.text_ends = array("Q", range(10, 80, 10))
    transcript.num_judged = 6
    for _ in range(3):
        transcript.present.judge.judge(verdict(RiskLevel.UNSAFE), scaffold=False)
    assert transcript.truncate(5) == 20
    assert (transcript.pushed_ids, len(transcript.scaffold_marks)) == (ids(1, 2, 3, 4, 5), 5)
    assert transcript.text_ends == array("Q", (10, 20, 30, 40, 50))
    assert (transcript.num_judged, transcript.epoch, transcript.present.judge.next_index) == (5, 1, 5)


def test_results_that_cross_truncations_count_as_far_as_their_tokens_still_exist() -> None:
    transcript = two_turns()
    transcript.truncate(5)  # epoch 1: positions below 20
    push(transcript, 8, 9, 10)
    transcript.truncate(7)  # epoch 2: positions below 22
    assert transcript.num_valid(0, 18, 4) == 2
    assert transcript.num_valid(0, 20, 2) == 0
    assert transcript.num_valid(0, 21, 1) == 0
    assert transcript.num_valid(1, 20, 3) == 2
    assert transcript.num_valid(2, 22, 3) == 3


@BOUNDED
@given(st.data())
def test_valid_results_are_about_tokens_that_were_never_replaced(data: st.DataObject) -> None:
    """Every token is a fresh number, so a planned token still exists exactly if it is still found in its place."""
    transcript = Transcript()
    begin_turn(transcript, 4)
    plans: list[tuple[int, int, list[int]]] = []
    number = 0
    for _ in range(data.draw(st.integers(1, 6))):
        num_new = data.draw(st.integers(0, 4))
        push(transcript, *range(number, number + num_new))
        number += num_new
        start = data.draw(st.integers(0, transcript.num_pushed))
        plans.append((transcript.epoch, start, transcript.pushed_ids[start:].tolist()))
        if data.draw(st.booleans()):
            transcript.truncate(data.draw(st.integers(0, transcript.num_pushed)))
    for epoch, start, planned in plans:
        still_there = transcript.pushed_ids[start : start + len(planned)].tolist()
        num_same = next(
            (i for i, pair in enumerate(zip(planned, still_there, strict=False)) if pair[0] != pair[1]), None
        )
        expected = min(len(planned), len(still_there)) if num_same is None else num_same
        assert transcript.num_valid(epoch, 4 + start, len(planned)) == expected


def test_text_offsets() -> None:
    transcript = two_turns()
    transcript.text_ends = array("Q", (2, 5, 9))
    assert [transcript.text_offset(index) for index in (0, 1, 3)] == [0, 2, 9]


def test_a_turns_action_is_the_higher_of_prompt_and_answer() -> None:
    turn = begin_turn(Transcript(), 5)
    actions = [turn.action]
    turn.prompt_decision = decide_prompt(POLICY, verdict(RiskLevel.UNSAFE), turn=0, token_index=0)
    actions.append(turn.action)
    turn.judge.judge(verdict(RiskLevel.UNSAFE), scaffold=False)
    assert [*actions, turn.action] == [Action.ALLOW, Action.FLAG, Action.BLOCK]


def test_tokens_are_counted_by_level_over_all_turns() -> None:
    transcript = two_turns()
    for turn, level in zip(transcript.turns, (RiskLevel.SAFE, RiskLevel.UNSAFE), strict=True):
        turn.judge.judge(verdict(level), scaffold=False)
        turn.judge.judge(verdict(RiskLevel.UNSAFE), scaffold=True)
    assert transcript.count_by_level() == {RiskLevel.SAFE: 1, RiskLevel.CONTROVERSIAL: 0, RiskLevel.UNSAFE: 1}
