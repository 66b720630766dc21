"""Compares what a stream was told with what the oracle says, message by message."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guardwire.v1 import moderation_pb2 as pb
from tests.parity.oracle import BranchReadings, Floats, Readings
from tests.parity.precision import FLOAT32, Precision
from tests.parity.schedules import SessionPlan

Integers = npt.NDArray[np.int64]

SAFE, CONTROVERSIAL, UNSAFE = pb.RISK_LEVEL_SAFE, pb.RISK_LEVEL_CONTROVERSIAL, pb.RISK_LEVEL_UNSAFE
ALLOW, FLAG, BLOCK = pb.ACTION_ALLOW, pb.ACTION_FLAG, pb.ACTION_BLOCK

ANSWER_ACTIONS: dict[str, dict[int, int]] = {
    "default": {UNSAFE: BLOCK, CONTROVERSIAL: ALLOW},
    "strict": {UNSAFE: BLOCK, CONTROVERSIAL: BLOCK},
    "observe": {UNSAFE: BLOCK, CONTROVERSIAL: FLAG},
}
PROMPT_ACTIONS: dict[str, dict[int, int]] = {
    "default": {UNSAFE: FLAG, CONTROVERSIAL: ALLOW},
    "strict": {UNSAFE: BLOCK, CONTROVERSIAL: BLOCK},
    "observe": {UNSAFE: FLAG, CONTROVERSIAL: FLAG},
}
"""What the built-in policies do about a risky text, by their descriptions."""

Label = tuple[int, int]
"""A risk level and a category, by the wire's numbers."""

ExpectedDecision = tuple[int, int, int, int, int, Label]
"""Action, role, turn, token index, cut index, label."""


class SessionCheck:
    """Follows one stream from `opened` to `summary`. `counts` is what was compared, over all sessions."""

    def __init__(
        self,
        plan: SessionPlan,
        readings: Sequence[BranchReadings],
        counts: Counter[str],
        precision: Precision = FLOAT32,
    ) -> None:
        self._plan, self._readings, self._counts, self._precision = plan, readings, counts, precision
        self._branch_index = 0
        self._labels: list[Label] = []  # of the judged tokens that no rollback took back
        self._runs: list[tuple[int, int, Label]] = []  # turn, second token and label of each run that counts
        self._prompt_labels: list[Label] = []
        self._expected: list[ExpectedDecision] = []
        self._enforced = plan.policy != "observe" and not plan.steps[0].request.open.observe_only

    def check(self, responses: Sequence[pb.ModerateStreamResponse]) -> None:
        """Raises AssertionError, naming seed, session and message, at the first difference."""
        for number, response in enumerate(responses):
            kind = response.WhichOneof("response")
            try:
                assert (kind == "opened") == (number == 0)
                assert (kind == "summary") == (number == len(responses) - 1)
                assert kind == "decision" or not self._expected, f"{self._expected[0]} is missing"
                getattr(self, f"_check_{kind}")(getattr(response, str(kind)))
            except AssertionError as error:
                error.add_note(f"{self._plan.name}, response {number} ({kind}), branch {self._branch_index}")
                raise
        assert responses, f"{self._plan.name}: nothing came"

    def _check_opened(self, opened: pb.StreamOpened) -> None:
        branch = self._plan.branches[0]
        assert opened.policy == self._plan.policy
        if branch.positions and branch.turns[0] == 0:
            assert opened.num_prompt_tokens == branch.positions[0]

    def _check_prompt_verdict(self, verdict: pb.PromptVerdict) -> None:
        turn = verdict.turn
        assert turn == len(self._prompt_labels)
        told = verdict.probabilities
        label = self._compare(
            self._readings[-1].prompts.at([turn]),
            _Told(
                np.array([verdict.risk_level]),
                np.array([verdict.category]),
                np.array([[told.safe, told.controversial, told.unsafe]], dtype=np.float32),
                np.array([verdict.category_probability], dtype=np.float32),
            ),
        )[0]
        self._prompt_labels.append(label)
        self._counts["prompts"] += 1
        action = PROMPT_ACTIONS[self._plan.policy].get(label[0], ALLOW)
        if action > ALLOW:
            index = sum(other < turn for other in self._plan.branches[-1].turns)
            self._expected.append((action, pb.ROLE_USER, turn, index, index, label))

    def _check_verdicts(self, verdicts: pb.Verdicts) -> None:
        branch = self._plan.branches[self._branch_index]
        start, stop = verdicts.start_index, verdicts.start_index + len(verdicts.risk_levels)
        assert start == len(self._labels)
        assert start < stop <= len(branch.positions)
        probabilities = (
            verdicts.safe_probabilities,
            verdicts.controversial_probabilities,
            verdicts.unsafe_probabilities,
        )
        labels = self._compare(
            self._readings[self._branch_index].answer.at(range(start, stop)),
            _Told(
                np.array(verdicts.risk_levels),
                np.array(verdicts.categories),
                np.array(probabilities, dtype=np.float32).T,
                np.array(verdicts.category_probabilities, dtype=np.float32),
            ),
        )
        marks = branch.scaffold[start:stop]
        assert list(verdicts.scaffold) == (list(marks) if any(marks) else [])
        assert tuple(verdicts.text_end_offsets) == branch.text_ends[start:stop]
        self._counts["tokens"] += stop - start
        self._counts["scaffold"] += sum(marks)
        for index, label in enumerate(labels, start):
            self._note_label(index, label)

    def _check_decision(self, decision: pb.Decision) -> None:
        assert self._expected, "no decision is due"
        label = (int(decision.risk_level), int(decision.category))
        told = (decision.action, decision.role, decision.turn, decision.token_index, decision.cut_index, label)
        assert told == self._expected.pop(0)
        assert decision.reason == pb.DECISION_REASON_VERDICT
        assert decision.enforced == self._enforced
        branch = self._plan.branches[self._branch_index]
        is_text = self._plan.steps[0].request.open.input == pb.INPUT_KIND_TEXT
        assert decision.HasField("cut_text_offset") == is_text
        if is_text:
            offset = branch.text_ends[decision.cut_index - 1] if decision.cut_index else 0
            assert decision.cut_text_offset == offset
        self._counts["decisions"] += 1

    def _check_rolled_back(self, rolled_back: pb.RolledBack) -> None:
        self._branch_index += 1
        num_kept = self._plan.branches[self._branch_index].num_kept
        assert rolled_back.num_tokens_kept == num_kept
        del self._labels[num_kept:]
        self._runs = [run for run in self._runs if run[1] < num_kept]
        turn = len(self._plan.branches[self._branch_index - 1].queries) - 1
        assert rolled_back.action == self._answer_action(turn)
        self._counts["rollbacks"] += 1

    def _check_summary(self, summary: pb.Summary) -> None:
        branch = self._plan.branches[-1]
        assert self._branch_index == len(self._plan.branches) - 1
        assert len(self._labels) == len(branch.positions) == summary.num_tokens
        assert len(self._prompt_labels) == len(branch.queries)
        levels = Counter(label[0] for label, mark in zip(self._labels, branch.scaffold, strict=True) if not mark)
        told = (summary.num_safe_tokens, summary.num_controversial_tokens, summary.num_unsafe_tokens)
        assert told == (levels[SAFE], levels[CONTROVERSIAL], levels[UNSAFE])
        prompts = [PROMPT_ACTIONS[self._plan.policy].get(level, ALLOW) for level, _ in self._prompt_labels]
        assert summary.action == max([*prompts, *map(self._answer_action, range(len(branch.queries)))])
        turn = len(branch.queries) - 1
        risk_level = max((label[0] for run_turn, _, label in self._runs if run_turn == turn), default=SAFE)
        assert summary.risk_level == (risk_level if turn in branch.turns else 0)
        for level, category in [*self._labels, *self._prompt_labels]:
            self._counts[f"risk level {level}"] += 1
            self._counts[f"category {category}"] += 1

    def _compare(self, oracle: Readings, told: "_Told") -> list[Label]:
        """Compares some verdicts with the oracle's readings at the same positions; returns their labels."""
        every, tolerance, tie = np.arange(len(told.levels)), self._precision.tolerance, self._precision.tie
        assert _differ_by(told.probabilities, oracle.risk) <= tolerance, "probabilities differ"
        may_be_level, may_be_category = oracle.may_be_level(tie), oracle.may_be_category(tie)
        assert may_be_level[every, told.levels - 1].all(), "a risk level differs"
        is_safe = told.levels == SAFE
        assert ((told.categories == 0) == is_safe).all(), "a category comes without a risk, or a risk without one"
        assert (may_be_category[every, told.categories - 1] | is_safe).all(), "a category differs"
        highest = np.where(is_safe, 0, oracle.category.max(axis=1))
        assert _differ_by(told.category_probabilities, highest) <= tolerance, "category probabilities differ"
        ties = (may_be_level.sum(axis=1) > 1) | ((may_be_category.sum(axis=1) > 1) & ~is_safe)
        self._counts["ties"] += int(ties.sum())
        return list(zip(told.levels.tolist(), told.categories.tolist(), strict=True))

    def _note_label(self, index: int, label: Label) -> None:
        """The official debounce rule: two consecutive tokens of one risky level, the template's own tokens left out."""
        self._labels.append(label)
        branch = self._plan.branches[self._branch_index]
        turn = branch.turns[index]
        if branch.scaffold[index] or label[0] == SAFE:
            return
        previous = index - 1
        while previous >= 0 and branch.scaffold[previous]:
            previous -= 1
        if previous < 0 or branch.turns[previous] != turn or self._labels[previous][0] != label[0]:
            return
        action = ANSWER_ACTIONS[self._plan.policy][label[0]]
        if action > self._answer_action(turn):
            self._expected.append((action, pb.ROLE_ASSISTANT, turn, index, previous, label))
        self._runs.append((turn, index, label))

    def _answer_action(self, turn: int) -> int:
        """The action in force for the answer of a turn."""
        actions = ANSWER_ACTIONS[self._plan.policy]
        return max([ALLOW, *(actions[label[0]] for run_turn, _, label in self._runs if run_turn == turn)])


@dataclass(frozen=True)
class _Told:
    """What the server said about some positions, as arrays of one length."""

    levels: Integers
    categories: Integers
    probabilities: Floats
    category_probabilities: Floats


def _differ_by(left: Floats, right: Floats) -> float:
    return float(np.abs(left - right).max(initial=0.0))
