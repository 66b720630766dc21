"""Surface noise: the same sentence as a hurried, a careful or a clumsy person would type it."""

import random
import re

_CONTRACTIONS = (
    ("i am", "i'm"),
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("can not", "can't"),
    ("cannot", "can't"),
    ("i will", "i'll"),
    ("i have", "i've"),
    ("it is", "it's"),
    ("that is", "that's"),
    ("what is", "what's"),
    ("is not", "isn't"),
    ("did not", "didn't"),
    ("would not", "wouldn't"),
    ("should not", "shouldn't"),
    ("i would", "i'd"),
    ("they are", "they're"),
    ("we are", "we're"),
    ("you are", "you're"),
    ("will not", "won't"),
    ("he is", "he's"),
    ("she is", "she's"),
    ("who is", "who's"),
    ("how is", "how's"),
)
_CHAT_SPELLINGS = {
    "you": "u",
    "are": "r",
    "please": "pls",
    "because": "cuz",
    "your": "ur",
    "people": "ppl",
    "something": "smth",
    "someone": "sb",
    "tomorrow": "tmrw",
    "want to": "wanna",
    "going to": "gonna",
    "about": "abt",
    "without": "w/o",
    "with": "w/",
    "thanks": "thx",
}
_FILLERS = ("really ", "just ", "actually ", "maybe ", "kind of ", "basically ", "honestly ")
_NEIGHBOUR_KEYS = "qwertyuiop asdfghjkl zxcvbnm"


def roughen_prompt(text: str, rng: random.Random) -> str:
    """Applies typing habits to a user's message; most messages stay close to what they were."""
    text = _swap_contractions(text, rng)
    if rng.random() < 0.5:
        text = text[:1].upper() + text[1:]
        text = re.sub(r"\bi\b", "I", text)
        text = re.sub(r"([.?!] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)
    elif rng.random() < 0.5:
        text = text.lower()
    if rng.random() < 0.06:
        text = _chat_spelling(text, rng)
    if rng.random() < 0.1:
        text = _typo(text, rng)
    if rng.random() < 0.05:
        text = _drop_word(text, rng)
    return _end_mark(text, rng)


def polish_prompt(text: str, rng: random.Random) -> str:
    """A message as typed with care: sentence case or all lower case, with or without its last mark."""
    if rng.random() < 0.3:
        return text.lower().rstrip(".")
    return _end_mark_of(re.sub(r"\bi\b", "I", text[:1].upper() + text[1:]))


def polish_answer(text: str, rng: random.Random) -> str:
    """Sentence case, as an assistant writes; now and then a contraction is written out or back."""
    text = _swap_contractions(text, rng)
    text = re.sub(r"\bi\b(?!\.e)", "I", text)
    text = re.sub(
        r"([.?!:]\s+)([a-z])",
        lambda match: match.group(1) + (match.group(2).upper() if match.group(1)[0] != ":" else match.group(2)),
        text,
    )
    return text[:1].upper() + text[1:]


def _swap_contractions(text: str, rng: random.Random) -> str:
    if rng.random() < 0.4:
        for long, short in _CONTRACTIONS:
            text = re.sub(rf"\b{long}\b", short, text)
    elif rng.random() < 0.2:
        for long, short in _CONTRACTIONS:
            text = re.sub(rf"\b{short}\b", long, text)
    if rng.random() < 0.15:
        text = text.replace("'", "") if rng.random() < 0.5 else text.replace("'", "’")
    return text


def _chat_spelling(text: str, rng: random.Random) -> str:
    for word, short in _CHAT_SPELLINGS.items():
        if rng.random() < 0.6:
            text = re.sub(rf"\b{word}\b", short, text)
    return text


def _typo(text: str, rng: random.Random) -> str:
    position = rng.randrange(len(text)) if text else 0
    if position >= len(text) - 1 or not text[position].isalpha() or not text[position + 1].isalpha():
        return text
    kind = rng.randrange(4)
    if kind == 0:
        return text[:position] + text[position + 1] + text[position] + text[position + 2 :]
    if kind == 1:
        return text[:position] + text[position + 1 :]
    if kind == 2:
        return text[:position] + text[position] + text[position:]
    return text[:position] + rng.choice(_NEIGHBOUR_KEYS.replace(" ", "")) + text[position + 1 :]


def _drop_word(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    droppable = [
        i
        for i, word in enumerate(words)
        if word.lower() in {"a", "the", "my", "some", "please", "really", "just", "to", "do"}
    ]
    if droppable and len(words) > 4:
        del words[rng.choice(droppable)]
    elif rng.random() < 0.5 and len(words) > 3:
        words.insert(rng.randrange(1, len(words)), rng.choice(_FILLERS).strip())
    return " ".join(words)


def _end_mark(text: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.25:
        return text.rstrip(".?!")
    if draw < 0.29:
        return text.rstrip(".?!") + rng.choice(("!", "!!", "??", "...", " ?"))
    return _end_mark_of(text)


def _end_mark_of(text: str) -> str:
    if text[-1:].isalnum():
        question = re.match(
            r"(how|what|where|who|which|why|when|is|are|can|could|do|does|should|would|will)\b", text, re.IGNORECASE
        )
        return text + ("?" if question else ".")
    return text
