from array import array

import pytest

from guardwire_server.core.events import EndReason, TokenVerdicts, UpdateMode
from guardwire_server.core.policy import Action
from guardwire_server.core.reports import VerdictReporter, summarise
from guardwire_server.core.transcript import Transcript
from guardwire_server.core.verdict import Category, RiskLevel
from tests.core.fakes import IM_END, FakeRenderer, ids, packed, unpacked, verdict
from tests.core.turns import begin_turn

LETTERS = {
    "s": verdict(RiskLevel.SAFE),
    "c": verdict(RiskLevel.CONTROVERSIAL),
    "u": verdict(RiskLevel.UNSAFE),
    "p": verdict(RiskLevel.UNSAFE, category=Category.PII),
}


def transcript_of(num_tokens: int) -> Transcript:
    transcript = Transcript()
    begin_turn(transcript, 5)
    transcript.push(ids(*range(num_tokens)), bytes(num_tokens))
    return transcript


def report(reporter: VerdictReporter, start: int, letters: str, num_tokens: int = 16) -> list[tuple[int, str]]:
    """What is told of these verdicts, as (start index, letters)."""
    transcript = transcript_of(num_tokens)
    verdicts = packed(LETTERS[letter] for letter in letters)
    return [spelt(told) for told in reporter.report(transcript, transcript.present, start, verdicts)]


def spelt(told: TokenVerdicts) -> tuple[int, str]:
    names = {one: letter for letter, one in LETTERS.items()}
    return told.start_index, "".join(names[one] for one in unpacked(told.verdicts))


def test_every_token_is_told() -> None:
    reporter = VerdictReporter(UpdateMode.EVERY_TOKEN, 0)
    assert report(reporter, 0, "ssu") == [(0, "ssu")]
    assert report(reporter, 3, "u") == [(3, "u")]
    assert report(reporter, 4, "") == []


def test_only_changes_are_told() -> None:
    reporter = VerdictReporter(UpdateMode.ON_CHANGE, 0)
    assert report(reporter, 0, "sssuupps") == [(0, "s"), (3, "u"), (5, "p"), (7, "s")]
    assert report(reporter, 8, "s") == []
    assert report(reporter, 9, "scu") == [(10, "cu")]


@pytest.mark.parametrize("chunks", [["sssuupps"], ["s", "ss", "uup", "ps"], list("sssuupps")])
def test_changes_do_not_depend_on_chunks(chunks: list[str]) -> None:
    reporter = VerdictReporter(UpdateMode.ON_CHANGE, 0)
    told, start = [], 0
    for chunk in chunks:
        told += report(reporter, start, chunk)
        start += len(chunk)
    assert told == [(0, "s"), (3, "u"), (5, "p"), (7, "s")]


def test_every_answer_begins_with_a_report() -> None:
    reporter = VerdictReporter(UpdateMode.ON_CHANGE, 0)
    transcript = transcript_of(2)
    safe = packed([LETTERS["s"]] * 2)
    assert [spelt(told) for told in reporter.report(transcript, transcript.present, 0, safe)] == [(0, "s")]
    second = begin_turn(transcript, 4)
    transcript.push(ids(1, 2), bytes(2))
    assert [spelt(told) for told in reporter.report(transcript, second, 2, safe)] == [(2, "s")]


def test_what_the_caller_has_already_is_not_told_again() -> None:
    reporter = VerdictReporter(UpdateMode.EVERY_TOKEN, 3)
    assert report(reporter, 0, "su") == []
    assert report(reporter, 2, "cup") == [(3, "up")]


def test_a_change_is_seen_across_the_place_where_a_stream_resumes() -> None:
    reporter = VerdictReporter(UpdateMode.ON_CHANGE, 3)
    assert report(reporter, 0, "suuus") == [(4, "s")]


def test_the_first_after_a_rollback_is_told_whenever_the_ones_before_it_are_judged() -> None:
    early, late = VerdictReporter(UpdateMode.ON_CHANGE, 0), VerdictReporter(UpdateMode.ON_CHANGE, 0)
    assert report(early, 0, "scc") == [(0, "sc")]
    early.restart(3)
    assert report(early, 3, "cc") == [(3, "c")]
    assert report(late, 0, "s") == [(0, "s")]
    late.restart(5)
    late.restart(3)
    assert report(late, 1, "cccc") == [(1, "c"), (3, "c")]
    assert report(late, 5, "c") == []


def test_after_a_rollback_the_next_token_is_told() -> None:
    reporter = VerdictReporter(UpdateMode.ON_CHANGE, 0)
    assert report(reporter, 0, "sss") == [(0, "s")]
    reporter.restart(1)
    assert report(reporter, 1, "ss") == [(1, "s")]


def test_tokens_pushed_after_a_rollback_are_new_also_on_a_resumed_stream() -> None:
    reporter = VerdictReporter(UpdateMode.EVERY_TOKEN, 6)
    assert report(reporter, 0, "ssssss") == []
    reporter.restart(2)
    assert report(reporter, 2, "uu") == [(2, "uu")]


def test_scaffold_and_text_offsets_go_with_the_tokens() -> None:
    transcript = Transcript()
    turn = begin_turn(transcript, 5)
    transcript.push(ids(20, 21, IM_END), FakeRenderer.scaffold.marks(ids(20, 21, IM_END), None))
    transcript.text_ends = array("Q", (3, 4, 9))
    reporter = VerdictReporter(UpdateMode.EVERY_TOKEN, 0)
    first, second = (
        reporter.report(transcript, turn, start, packed([LETTERS["s"]] * num_tokens))[0]
        for start, num_tokens in ((0, 1), (1, 2))
    )
    assert (first.text_end_offsets, first.scaffold) == (array("Q", (3,)), b"")
    assert (second.text_end_offsets, second.scaffold) == (array("Q", (4, 9)), bytes((0, 1)))


def test_the_summary_of_a_stream_without_any_verdict() -> None:
    summary = summarise(transcript_of(0), EndReason.FINISHED, None, 1.5)
    assert (summary.prompt, summary.risk_level, summary.category) == (None, None, None)
    assert (summary.action, summary.num_tokens, summary.duration_s) == (Action.ALLOW, 0, 1.5)


def test_the_summary_tells_the_present_answer_and_the_highest_action_of_all() -> None:
    transcript = transcript_of(2)
    transcript.set_prompt_verdict(transcript.turns[0], LETTERS["c"])
    for _ in range(2):
        transcript.present.judge.judge(LETTERS["u"], scaffold=False)
    begin_turn(transcript, 5)
    transcript.push(ids(7, 8, 9), bytes(3))
    for letter in "ssc":
        transcript.present.judge.judge(LETTERS[letter], scaffold=False)
    transcript.num_judged = 5
    summary = summarise(transcript, EndReason.FINISHED, 0.25, 2.0)
    assert (summary.action, summary.risk_level, summary.category) == (
        Action.BLOCK,
        RiskLevel.CONTROVERSIAL,
        Category.VIOLENT,
    )
    assert summary.prompt
    assert (summary.prompt.turn, summary.prompt.verdict) == (0, LETTERS["c"])
    assert summary.num_tokens_by_level == {RiskLevel.SAFE: 2, RiskLevel.CONTROVERSIAL: 1, RiskLevel.UNSAFE: 2}
    assert (summary.num_tokens, summary.time_to_prompt_verdict_s) == (5, 0.25)
