"""Turns of a transcript as the session makes them, for the tests of what works on a transcript."""

from array import array

from guardwire_server.core.events import RenderedTurn
from guardwire_server.core.policy import Debounce, Policy
from guardwire_server.core.transcript import Transcript, Turn

POLICY = Policy("p", "", debounce=Debounce.NONE)
"""Every risky token counts."""


def begin_turn(transcript: Transcript, num_prompt_tokens: int) -> Turn:
    """A user message whose closing token is the last but one of its prompt."""
    rendered = RenderedTurn(array("i", bytes(4 * num_prompt_tokens)), num_prompt_tokens - 2)
    transcript.begin_turn(rendered, POLICY)
    return transcript.present
