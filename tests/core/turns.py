"""Turns of a transcript as the session makes them, for the tests of what works on a transcript."""

from guardwire_server.core.policy import AnswerJudge, Debounce, Policy
from guardwire_server.core.transcript import Transcript, Turn

POLICY = Policy("p", "", debounce=Debounce.NONE)
"""Every risky token counts."""


def begin_turn(transcript: Transcript, num_prompt_tokens: int) -> Turn:
    """A user message whose closing token is the last but one of its prompt."""
    start, number = transcript.num_positions, len(transcript.turns)
    transcript.num_positions += num_prompt_tokens
    turn = Turn(
        number=number,
        query_position=start + num_prompt_tokens - 2,
        answer_position=transcript.num_positions,
        judge=AnswerJudge(POLICY, turn=number, first_index=transcript.num_pushed),
        first_index=transcript.num_pushed,
    )
    transcript.turns.append(turn)
    return turn
