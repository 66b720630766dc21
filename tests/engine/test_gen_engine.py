import dataclasses
import random
from collections.abc import Sequence

import pytest

from guardwire_server.core.answer import MAX_ANSWER_TOKENS
from guardwire_server.core.errors import DeadlinePassed, EngineError, EngineUnavailable, RequestError
from guardwire_server.core.observation import EngineLoad
from guardwire_server.core.scheduler import SchedulerLimits
from guardwire_server.engine.gen_engine import CallResult, CancelCall, GenEngine, GeneratedAnswer, StartCall
from tests.core.fakes import IM_END
from tests.engine.fakes import FakeGenBackend, ManualClock, as_ids, gen_prompt, risk_probabilities, scheduler

SAFE = "Safety: Safe\nCategories: None"
UNSAFE = "Safety: Unsafe\nCategories: Violent"


class Harness:
    """A generative engine with its backend and clock."""

    def __init__(
        self,
        answers: dict[str, str] | None = None,
        limits: SchedulerLimits | None = None,
        num_roots: int = 4,
        root_tokens: int = 256,
        likely_answers: Sequence[str] = (),
    ) -> None:
        self.clock = ManualClock()
        self.backend = FakeGenBackend(num_roots * root_tokens, answers)
        self.backend.likely_answers = {mode: tuple(map(answer_ids, likely_answers)) for mode in (False, True)}
        self.delivered: list[CallResult] = []
        self.scheduler = scheduler(num_roots, root_tokens, limits)
        self.engine = GenEngine(self.scheduler, self.backend, self.delivered.extend, self.clock)

    def start(self, call_id: int, text: str, timeout_s: float | None = None) -> None:
        deadline_s = None if timeout_s is None else self.clock.now_s + timeout_s
        self.engine.apply(StartCall(call_id, gen_prompt(text), expects_refusal=False, deadline_s=deadline_s))
        self.engine.update_load()

    def steps(self, num_steps: int) -> list[CallResult]:
        return [result for _ in range(num_steps) for result in self.engine.step()]

    def run(self) -> dict[int, GeneratedAnswer | RequestError]:
        """Steps until every call is over."""
        results: list[CallResult] = []
        while self.engine.has_work:
            results += self.engine.step()
        assert len(dict(results)) == len(results), "one result a call"
        return dict(results)

    def answers(self) -> list[GeneratedAnswer]:
        """As `run`, in the order of the calls, all of which must have succeeded."""
        outcomes = [outcome for _, outcome in sorted(self.run().items(), key=lambda item: item[0])]
        return [outcome for outcome in outcomes if isinstance(outcome, GeneratedAnswer)]


def answer_ids(text: str) -> tuple[int, ...]:
    return (*as_ids(text), IM_END)


def reference(prompt: str, text: str) -> GeneratedAnswer:
    """The answer that one call alone gets in one token a pass."""
    context = [*gen_prompt(prompt), *FakeGenBackend.verdict_prefix]
    return GeneratedAnswer(answer_ids(text), risk_probabilities(context), len(text) + 1)


def test_a_greedy_answer_with_its_end_and_the_probabilities_at_the_verdict() -> None:
    harness = Harness({"bad": UNSAFE})
    harness.start(1, "bad")
    harness.start(2, "good")
    assert harness.run() == {1: reference("bad", UNSAFE), 2: reference("good", SAFE)}


def test_calls_share_their_steps_and_join_while_others_run() -> None:
    harness = Harness({"bad": UNSAFE})
    harness.start(1, "bad")
    assert harness.steps(10) == []
    harness.start(2, "good")
    harness.start(3, "fine")
    assert harness.run() == {1: reference("bad", UNSAFE), 2: reference("good", SAFE), 3: reference("fine", SAFE)}
    assert harness.backend.num_steps == max(len(UNSAFE) + 1, 10 + len(SAFE) + 1)


def test_a_long_prompt_is_read_in_several_passes() -> None:
    harness = Harness(limits=SchedulerLimits(max_num_batched_tokens=8))
    harness.start(1, "x" * 39)
    answer = harness.run()[1]
    assert isinstance(answer, GeneratedAnswer)
    assert answer.token_ids == answer_ids(SAFE)
    assert answer.num_passes == 5 + len(SAFE)


def test_an_answer_without_end_is_cut() -> None:
    harness = Harness({"bad": "la" * 100})
    harness.start(1, "bad")
    answer = harness.run()[1]
    assert isinstance(answer, GeneratedAnswer)
    assert answer.token_ids == tuple(as_ids("la" * 64))
    assert (len(answer.token_ids), answer.probabilities) == (MAX_ANSWER_TOKENS, None)


@pytest.mark.parametrize("text", ["", "Safety", "Safety:", "Safety : Safe", "So: Safety: Safe"])
def test_an_answer_that_never_chose_a_level_has_no_probabilities(text: str) -> None:
    harness = Harness({"bad": text})
    harness.start(1, "bad")
    assert harness.run() == {1: GeneratedAnswer(answer_ids(text), None, len(text) + 1)}


def test_an_answer_that_ends_where_the_level_was_to_come_has_probabilities() -> None:
    harness = Harness({"bad": "Safety: "})
    harness.start(1, "bad")
    assert harness.run() == {1: reference("bad", "Safety: ")}


def test_an_arena_far_too_small_gives_the_same_answers() -> None:
    texts = [f"prompt {number}" for number in range(6)]
    harness = Harness(limits=SchedulerLimits(max_num_batched_tokens=40), num_roots=2, root_tokens=64)
    for call_id, text in enumerate(texts):
        harness.start(call_id, text)
    results = harness.run()
    for call_id, text in enumerate(texts):
        answer = results[call_id]
        assert isinstance(answer, GeneratedAnswer)
        assert answer.token_ids == answer_ids(SAFE)
        assert answer.probabilities == reference(text, SAFE).probabilities
    assert harness.engine.load.num_evictions > 0


GRAMMAR = [SAFE, UNSAFE, "Safety: Unsafe\nCategories: PII", "Safety: Controversial\nCategories: Violent"]
OTHERS = ["", "Safety", "Safety: Sad\nCategories: None", "Safety: Unsafe\nCategories: Violent, PII", "I can't say"]


def test_a_right_guess_takes_one_pass() -> None:
    harness = Harness({"bad": UNSAFE}, likely_answers=GRAMMAR)
    harness.start(1, "good")
    harness.start(2, "bad")
    results = harness.run()
    assert results[1] == dataclasses.replace(reference("good", SAFE), num_passes=1)
    assert results[2] == dataclasses.replace(reference("bad", UNSAFE), num_passes=2), "the level, then the rest"


def test_guesses_are_learned_from_what_was_answered() -> None:
    harness = Harness({"bad": UNSAFE, "worse": UNSAFE, "worst": UNSAFE}, likely_answers=GRAMMAR)
    passes = []
    for call_id, text in enumerate(("bad", "worse", "worst")):
        harness.start(call_id, text)
        answer = harness.run()[call_id]
        assert isinstance(answer, GeneratedAnswer)
        passes.append(answer.num_passes)
    assert passes == [2, 1, 1]


def test_guesses_about_prompts_and_about_answers_are_kept_apart() -> None:
    harness = Harness({"bad": f"{SAFE}\nRefusal: No"}, likely_answers=[SAFE])
    for call_id, expects_refusal in enumerate((False, True, True, False)):
        text = "bad" if expects_refusal else "good"
        harness.engine.apply(StartCall(call_id, gen_prompt(text), expects_refusal, deadline_s=None))
        harness.engine.update_load()
    assert {answer.num_passes for answer in harness.answers()} == {1, 13}
    harness.engine.apply(StartCall(9, gen_prompt("bad"), expects_refusal=True, deadline_s=None))
    harness.engine.update_load()
    assert harness.answers()[0].num_passes == 1


def test_whatever_is_guessed_the_answer_is_the_greedy_one() -> None:
    """Random traffic in an arena that is too small, with steps too small for a prompt: text and probabilities hold."""
    rng = random.Random(7)
    openings = ["a long instruction that begins every prompt; ", "another one that does the same thing; ", ""]
    prompts = {f"{rng.choice(openings)}{rng.random()}": rng.choice([*GRAMMAR, *OTHERS]) for _ in range(200)}
    limits = SchedulerLimits(max_num_batched_tokens=50, max_num_seqs=8, max_retired=5)
    harness = Harness(prompts, limits, num_roots=2, root_tokens=256, likely_answers=GRAMMAR)
    results: list[CallResult] = []
    for call_id, prompt in enumerate(prompts):
        harness.start(call_id, prompt)
        for _ in range(rng.randrange(4)):
            results += harness.engine.step()
    outcomes = dict(results) | harness.run()
    for call_id, (prompt, text) in enumerate(prompts.items()):
        answer = outcomes[call_id]
        assert isinstance(answer, GeneratedAnswer)
        expected = reference(prompt, text)
        if tuple(answer_ids(text)[: len(FakeGenBackend.verdict_prefix)]) != FakeGenBackend.verdict_prefix:
            expected = dataclasses.replace(expected, probabilities=None)
        assert dataclasses.replace(answer, num_passes=0) == dataclasses.replace(expected, num_passes=0)
    assert harness.scheduler.num_reused_tokens > 0
    assert harness.engine.load.num_sequences == 0


def test_prompts_that_begin_alike_are_read_once() -> None:
    opening = "the same instruction for every conversation: "
    harness = Harness(likely_answers=GRAMMAR)
    harness.start(1, f"{opening}first")
    harness.run()
    num_tokens = harness.engine.load.num_step_tokens
    harness.start(2, f"{opening}second")
    assert harness.run()[2] == dataclasses.replace(reference(f"{opening}second", SAFE), num_passes=1)
    num_new = len("second") + 1 + len(SAFE)
    assert harness.engine.load.num_step_tokens - num_tokens == num_new
    assert harness.scheduler.num_reused_tokens == len(opening)


def test_a_deadline_that_has_passed_costs_no_step() -> None:
    harness = Harness()
    harness.start(1, "late", timeout_s=1.0)
    harness.clock.now_s += 1.0
    ((call_id, error),) = harness.engine.step()
    assert call_id == 1
    assert isinstance(error, DeadlinePassed)
    assert (harness.backend.num_steps, harness.engine.has_work) == (0, False)
    assert harness.engine.load.num_sequences == 0


def test_a_deadline_passes_between_steps_and_others_go_on() -> None:
    harness = Harness()
    harness.start(1, "late", timeout_s=5.0)
    harness.start(2, "early", timeout_s=5000.0)
    harness.start(3, "patient")
    harness.steps(3)
    harness.clock.now_s += 5.0
    results = harness.run()
    assert isinstance(results[1], DeadlinePassed)
    assert (results[2], results[3]) == (reference("early", SAFE), reference("patient", SAFE))


def test_a_cancelled_call_gets_no_result_and_no_step() -> None:
    harness = Harness()
    harness.start(1, "gone")
    harness.start(2, "here")
    harness.steps(2)
    harness.engine.apply(CancelCall(1))
    harness.engine.update_load()
    harness.engine.apply(CancelCall(1))
    harness.engine.update_load()
    assert harness.run() == {2: reference("here", SAFE)}
    harness.engine.apply(CancelCall(2))
    harness.engine.update_load()


def test_a_failing_step_costs_its_calls_and_no_others() -> None:
    harness = Harness(limits=SchedulerLimits(max_num_seqs=1))
    harness.start(1, "unlucky")
    harness.start(2, "lucky")
    harness.backend.num_failures_to_come = 1
    ((call_id, error),) = harness.engine.step()
    assert call_id == 1
    assert isinstance(error, EngineError)
    assert harness.engine.num_consecutive_failures == 1
    assert harness.run() == {2: reference("lucky", SAFE)}
    assert harness.engine.num_consecutive_failures == 0


def test_giving_everything_up() -> None:
    harness = Harness()
    harness.start(1, "a")
    harness.start(2, "b")
    harness.steps(1)
    error = EngineUnavailable("LOST", "lost")
    assert harness.engine.fail_all(error) == [(1, error), (2, error)]
    assert (harness.engine.fail_all(error), harness.engine.has_work) == ([], False)


def test_deliver_passes_results_on() -> None:
    harness = Harness()
    result = (1, EngineUnavailable("LOST", "lost"))
    harness.engine.deliver([result])
    assert harness.delivered == [result]


def test_the_load_counts_and_is_nothing_at_the_end() -> None:
    harness = Harness()
    harness.start(1, "a")
    assert harness.engine.load == EngineLoad(num_sequences=1, num_pending_tokens=2)
    harness.steps(1)
    assert harness.engine.load == EngineLoad(1, 1, 64 / 1024, 1, 1, 2, 0)
    harness.run()
    num_steps = len(SAFE) + 1
    assert harness.engine.load == EngineLoad(0, 0, 0.0, num_steps, num_steps, num_steps + 1, 0)
