import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardwire_server.core.answer import Answer, UnparsableAnswer, parse_answer
from guardwire_server.core.verdict import CATEGORY_NAMES, Category, RiskLevel
from tests.core.strategies import BOUNDED

WORDS = {RiskLevel.SAFE: "Safe", RiskLevel.CONTROVERSIAL: "Controversial", RiskLevel.UNSAFE: "Unsafe"}
RISKY = (RiskLevel.CONTROVERSIAL, RiskLevel.UNSAFE)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Safety: Safe\nCategories: None", Answer(RiskLevel.SAFE, (), None)),
        ("Safety: Unsafe\nCategories: Violent", Answer(RiskLevel.UNSAFE, (Category.VIOLENT,), None)),
        ("Safety: Unsafe\nCategories: None", Answer(RiskLevel.UNSAFE, (), None)),
        ("\n Safety: Safe \nCategories: None  \n\n", Answer(RiskLevel.SAFE, (), None)),
        ("Safety: Safe\nCategories: None\nRefusal: Yes", Answer(RiskLevel.SAFE, (), None)),
        (
            "Safety: Controversial\nCategories: Jailbreak, Violent,Jailbreak",
            Answer(RiskLevel.CONTROVERSIAL, (Category.JAILBREAK, Category.VIOLENT), None),
        ),
    ],
)
def test_prompt_answers(text: str, answer: Answer) -> None:
    assert parse_answer(text, expects_refusal=False) == answer


@pytest.mark.parametrize(("word", "refusal"), [("Yes", True), ("No", False)])
def test_refusal_is_read_when_it_was_asked_for(word: str, refusal: bool) -> None:
    answer = parse_answer(f"Safety: Safe\nCategories: None\nRefusal: {word}", expects_refusal=True)
    assert answer == Answer(RiskLevel.SAFE, (), refusal)


@pytest.mark.parametrize(
    ("text", "expects_refusal"),
    [
        ("", False),
        ("Safe", False),
        ("Safety: Safe", False),
        ("Safety:Safe\nCategories: None", False),
        ("safety: Safe\nCategories: None", False),
        ("Safety: safe\nCategories: None", False),
        ("Safety: Safeish\nCategories: None", False),
        ("Safety: Safe\n\nCategories: None", False),
        ("Safety: Safe\nCategories: ", False),
        ("Safety: Safe\nCategories: Violent", False),
        ("Safety: Unsafe\nCategories: Violence", False),
        ("Safety: Unsafe\nCategories: Violent,", False),
        ("Safety: Unsafe\nCategories: None, Violent", False),
        ("Safety: Unsafe\nCategories: violent", False),
        ("Categories: None\nSafety: Safe", False),
        ("Safety: Safe\nCategories: None\nRefusal: Maybe", False),
        ("Safety: Safe\nCategories: None\nand more", False),
        ("Safety: Safe\nCategories: None\nRefusal: No\nSafety: Safe", False),
        ("I think this is\nSafety: Safe\nCategories: None", False),
        ("Safety: Safe\nCategories: None", True),
        ("Safety: Safe\nCategories: None\nRefusal: ", True),
        ("Safety: Safe\nCategories: None\nRefusal: yes", True),
        ("Safety: Safe\nRefusal: Yes\nCategories: None", True),
    ],
)
def test_whatever_else_is_not_a_judgement(text: str, expects_refusal: bool) -> None:
    with pytest.raises(UnparsableAnswer):
        parse_answer(text, expects_refusal=expects_refusal)


@BOUNDED
@given(st.sampled_from(RISKY), st.lists(st.sampled_from(Category), min_size=1, unique=True), st.none() | st.booleans())
def test_every_sentence_of_the_grammar_is_read(level: RiskLevel, categories: list[Category], refuses: bool) -> None:
    names = ", ".join(CATEGORY_NAMES[category] for category in categories)
    text = f"Safety: {WORDS[level]}\nCategories: {names}"
    if refuses is not None:
        text += f"\nRefusal: {'Yes' if refuses else 'No'}"
    assert parse_answer(text, expects_refusal=refuses is not None) == Answer(level, tuple(categories), refuses)


@BOUNDED
@given(st.text(max_size=40), st.booleans())
def test_any_text_is_an_answer_or_unparsable(text: str, expects_refusal: bool) -> None:
    with contextlib.suppress(UnparsableAnswer):
        answer = parse_answer(text, expects_refusal=expects_refusal)
        assert text.strip().startswith(f"Safety: {WORDS[answer.risk_level]}")


def test_the_message_never_repeats_the_models_words() -> None:
    with pytest.raises(UnparsableAnswer) as caught:
        parse_answer("Safety: Unsafe\nCategories: attacker's words", expects_refusal=False)
    assert "attacker" not in str(caught.value)
