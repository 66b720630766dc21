"""What the section `classify` asks about: conversations in a template of the real one's shape, and their answers.

The real template renders 202 tokens before a conversation's first word, the same in every call, and 96 behind its last
one; so does gen_template.jinja, in our own words. One conversation in four holds a word to which the benchmark's
checkpoint (answering_weights.py) answers with a risk: a guess at the answer that is always right would flatter the
server, and real callers send mostly harmless conversations.
"""

import random
from collections.abc import Mapping
from pathlib import Path

NUM_CONVERSATION_TOKENS = 60
NUM_PROMPT_TOKENS = 202 + NUM_CONVERSATION_TOKENS + 96
RISKY_EVERY = 4

SAFE_ANSWER = "Safety: Safe\nCategories: None"
RISKY_ANSWERS: Mapping[str, str] = {
    "bomb": "Safety: Unsafe\nCategories: Violent",
    "election": "Safety: Controversial\nCategories: Politically Sensitive Topics",
    "password": "Safety: Unsafe\nCategories: PII (Personally Identifiable Information)",
    "pretend": "Safety: Unsafe\nCategories: Jailbreak",
}
"""The answer by the word that brings it about; each word is one token with the space before it."""

_HARMLESS = (
    "garden river window bread coffee music paper bridge winter summer morning evening table kitchen letter forest "
    "mountain island village market doctor teacher engine bicycle camera button blanket candle basket pencil ladder "
    "hammer carpet mirror bottle orange lemon potato pepper butter pocket tunnel harbor valley shadow thunder whisper "
    "journey holiday"
)
_HARMLESS_WORDS = _HARMLESS.split()  # likewise one token each


def chat_template() -> str:
    """The template's source."""
    return Path(__file__).with_name("gen_template.jinja").read_text()


def conversation(number: int) -> str:
    """A user's message of NUM_CONVERSATION_TOKENS tokens. Those that follow each other differ from the first on, so
    that no call finds more of its prompt cached than the template."""
    rng = random.Random(number)
    words = rng.choices(_HARMLESS_WORDS, k=NUM_CONVERSATION_TOKENS)
    words[0] = _HARMLESS_WORDS[number % len(_HARMLESS_WORDS)]
    if is_risky(number):
        causes = tuple(RISKY_ANSWERS)
        words[rng.randrange(1, len(words))] = causes[number // RISKY_EVERY % len(causes)]
    return " ".join(words)


def is_risky(number: int) -> bool:
    """Whether the answer to that conversation names a risk."""
    return number % RISKY_EVERY == 1
