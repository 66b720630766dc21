"""What the caller of one stream is told: checked for its order as it comes, and against the contract at the end."""

from dataclasses import dataclass, field
from math import isclose
from typing import Any, Self

from guardwire.v1 import moderation_pb2 as pb
from tests.fuzz.contract import Contract
from tests.rpc.stream_call import Received, TokenVerdict, unpack

RISKS = (pb.RISK_LEVEL_SAFE, pb.RISK_LEVEL_CONTROVERSIAL, pb.RISK_LEVEL_UNSAFE)
CATEGORIES = [number for number in pb.Category.values() if number]
ACTIONS = (pb.ACTION_FLAG, pb.ACTION_BLOCK)


@dataclass
class Told(Received):
    """What came, and the index of the next verdict; where not every verdict is told, a later one may come instead."""

    next_index: int = 0
    may_skip: bool = False
    text_ends: dict[int, int | None] = field(default_factory=dict)  # by index

    @classmethod
    def by(cls, contract: Contract) -> Self:
        """To be filled with what a stream of such an `open` is told."""
        first_index = contract.options.resume_from if contract.options else 0
        return cls(next_index=first_index, may_skip=not contract.tells_every_token)

    def take(self, response: pb.ModerateStreamResponse) -> None:
        """Takes a response, which must be one that may come now."""
        assert self.summary is None, "nothing follows the summary"
        is_first = not self.kinds
        super().take(response)
        assert (self.kinds[-1] == "opened") is is_first, "`opened` is the first, and only the first"
        match self.kinds[-1]:
            case "prompt_verdict":
                self._check_prompt_verdict(self.prompt_verdicts[-1])
            case "verdicts":
                self._take_verdicts(unpack(response.verdicts))
            case "decision":
                self._check_decision(self.decisions[-1])
            case "rolled_back":
                kept = self.rolled_back[-1].num_tokens_kept
                self.next_index = min(self.next_index, kept)
                self.text_ends = {index: end for index, end in self.text_ends.items() if index < kept}
            case "summary":
                self._check_summary(response.summary)

    def check_complete(self, contract: Contract) -> None:
        """Whether everything that was pushed has been told of: the stream ended, and not early."""
        assert len(self.prompt_verdicts) == contract.num_turns
        assert len(self.rolled_back) == contract.num_rollbacks
        if contract.tells_every_token:
            assert self.next_index == max(contract.num_reported_before, len(contract.ids))
        if contract.is_text:
            assert all(end == contract.ends[index] for index, end in self.text_ends.items())

    def check_bounds(self, contract: Contract) -> None:
        """Whether nothing was told of what was not pushed: for streams that ended early."""
        if not contract.num_rollbacks:
            assert self.next_index <= max(contract.num_reported_before, len(contract.ids))
        assert len(self.prompt_verdicts) <= contract.num_turns
        assert len(self.rolled_back) <= contract.num_rollbacks

    def _take_verdicts(self, verdicts: list[TokenVerdict]) -> None:
        for verdict in verdicts:
            assert verdict.index == self.next_index or (self.may_skip and verdict.index > self.next_index)
            self.next_index = verdict.index + 1
            self.text_ends[verdict.index] = verdict.text_end_offset
            _check_verdict(verdict.risk_level, verdict.category, verdict.probabilities)
            assert 0 <= verdict.category_probability <= 1

    def _check_prompt_verdict(self, verdict: pb.PromptVerdict) -> None:
        assert verdict.turn == len(self.prompt_verdicts) - 1
        odds = verdict.probabilities
        _check_verdict(verdict.risk_level, verdict.category, (odds.safe, odds.controversial, odds.unsafe))

    def _check_decision(self, decision: pb.Decision) -> None:
        assert decision.action in ACTIONS
        assert decision.reason == pb.DECISION_REASON_VERDICT
        assert decision.role in (pb.ROLE_USER, pb.ROLE_ASSISTANT)
        assert decision.turn < len(self.prompt_verdicts)
        assert decision.cut_index <= decision.token_index
        if decision.role == pb.ROLE_ASSISTANT and not self.may_skip:
            assert decision.token_index < self.next_index, "a decision follows the verdict that it rests on"

    def _check_summary(self, summary: pb.Summary) -> None:
        assert summary.end_reason in (pb.END_REASON_FINISHED, pb.END_REASON_BLOCKED)
        if summary.end_reason == pb.END_REASON_BLOCKED:
            decision = self.decisions[-1]
            assert decision.action == summary.action == pb.ACTION_BLOCK
            assert decision.enforced
        counts = (summary.num_safe_tokens, summary.num_controversial_tokens, summary.num_unsafe_tokens)
        assert sum(counts) <= summary.num_tokens


def _check_verdict(risk_level: int, category: int, probabilities: Any) -> None:  # noqa: ANN401 three floats
    assert risk_level in RISKS
    assert (category in CATEGORIES) is (risk_level != pb.RISK_LEVEL_SAFE)
    assert isclose(sum(probabilities), 1.0, abs_tol=1e-3)
    assert probabilities[risk_level - 1] == max(probabilities)
