from guardwire_server.core import answer_drafts
from guardwire_server.core.answer import answer_texts, parse_answer
from guardwire_server.core.answer_drafts import AnswerDrafts
from guardwire_server.core.verdict import Category, RiskLevel

END = 99


def test_the_grammar_comes_first() -> None:
    drafts = AnswerDrafts([(1, 2, 3, END), (1, 4, 5, END)])
    assert drafts.draft([]) == [1, 2, 3, END]
    assert drafts.draft([1, 4]) == [5, END]
    assert drafts.draft([1, 2, 3, END]) == []


def test_what_is_given_most_is_guessed_first() -> None:
    drafts = AnswerDrafts([(1, 2, END), (1, 3, END)])
    drafts.count((1, 3, END))
    assert drafts.draft([]) == [1, 3, END]
    for _ in range(2):
        drafts.count((1, 5, 6, END))
    assert drafts.draft([1]) == [5, 6, END]


def test_nothing_is_guessed_after_what_was_never_given() -> None:
    drafts = AnswerDrafts([(1, 2, END)])
    assert drafts.draft([7]) == []
    assert drafts.draft([1, 2, END, 5]) == []
    assert AnswerDrafts([]).draft([]) == []


def test_the_memory_is_bounded() -> None:
    drafts = AnswerDrafts([])
    for answer in range(3 * answer_drafts.MAX_NODES):
        drafts.count((answer, END))
    assert drafts._num_nodes == answer_drafts.MAX_NODES
    drafts.count((0, END))
    assert drafts.draft([]) == [0, END]


def test_the_texts_are_the_grammar() -> None:
    """Every text parses, and together they are every level with every category that it can have."""
    for expects_refusal in (False, True):
        answers = [
            parse_answer(text, expects_refusal=expects_refusal)
            for text in answer_texts(expects_refusal=expects_refusal)
        ]
        told = {(answer.risk_level, answer.categories, answer.refusal) for answer in answers}
        assert len(told) == len(answers)
        refusals = (True, False) if expects_refusal else (None,)
        risky = (RiskLevel.UNSAFE, RiskLevel.CONTROVERSIAL)
        assert told == {(RiskLevel.SAFE, (), refusal) for refusal in refusals} | {
            (level, (category,), refusal) for level in risky for category in Category for refusal in refusals
        }
        assert answers[0].risk_level is RiskLevel.SAFE
