"""The label vocabulary of the demo corpus, in the spellings of the checkpoints.

Source: the label maps of the Qwen3Guard-Stream config and the answer format of the Qwen3Guard-Gen model card.
"""

from dataclasses import dataclass

SAFE, UNSAFE, CONTROVERSIAL = 0, 1, 2
RISK_NAMES = ("Safe", "Unsafe", "Controversial")

CATEGORY_NAMES = (
    "Violent",
    "Sexual Content",
    "Self-Harm",
    "Political",
    "PII",
    "Copyright",
    "Illegal Acts",
    "Unethical",
    "Jailbreak",
)
"""Config spelling by class index of the query head; the response head stops before Jailbreak."""

GEN_CATEGORY_NAMES = (
    "Violent",
    "Sexual Content or Sexual Acts",
    "Suicide & Self-Harm",
    "Politically Sensitive Topics",
    "PII (Personally Identifiable Information)",
    "Copyright Violation",
    "Non-violent Illegal Acts",
    "Unethical Acts",
    "Jailbreak",
)
"""The same classes as Gen writes them in its answer."""

CATEGORY_FILES = (
    "violent",
    "sexual",
    "self_harm",
    "political",
    "pii",
    "copyright",
    "illegal",
    "unethical",
    "jailbreak",
)
"""Stem of the corpus file of each class."""

JAILBREAK = CATEGORY_NAMES.index("Jailbreak")
NUM_RESPONSE_CATEGORIES = JAILBREAK


@dataclass(frozen=True)
class Label:
    """A risk level and, unless it is Safe, the index of one category."""

    risk: int
    category: int | None = None


SAFE_LABEL = Label(SAFE)
