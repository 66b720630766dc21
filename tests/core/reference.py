"""What a stream must tell its caller: the truth about its tokens, and a caller that keeps what it is told.

`Truth` follows what was pushed and knows each verdict from the tokens alone. `Caller` follows the updates as the
protocol says they are to be read. However a stream was chunked, delayed or mixed with others, the two agree at its end.
"""

from dataclasses import astuple, dataclass, field

from guardwire_server.core import events as ev
from guardwire_server.core.events import RenderedTurn
from guardwire_server.core.policy import Action, Decision, Policy
from guardwire_server.core.verdict import RiskLevel, Role, Verdict
from tests.core import oracle
from tests.core.fakes import FakeRenderer, model_verdict, unpacked


@dataclass
class TrueTurn:
    """A prompt and the answer to it, as positions in the whole sequence."""

    query_position: int
    answer_position: int
    answer: list[int] = field(default_factory=list)


class Truth:
    """What was said on a stream, as far as it was not taken back."""

    def __init__(self, opening: ev.OpenRequested) -> None:
        assert isinstance(opening.prompt, tuple)
        self.opening = opening
        self._renderer = FakeRenderer()
        self._ids: list[int] = []
        self.turns: list[TrueTurn] = []
        self._begin(self._renderer.prompt(opening.prompt, opening.thinking))

    @property
    def first_index(self) -> int:
        """The index of the present answer's first token."""
        return sum(len(turn.answer) for turn in self.turns[:-1])

    @property
    def num_pushed(self) -> int:
        """Tokens that were pushed and not taken back."""
        return sum(len(turn.answer) for turn in self.turns)

    @property
    def num_positions(self) -> int:
        """Tokens of the whole sequence."""
        return len(self._ids)

    def push(self, token_ids: list[int]) -> None:
        self._ids += token_ids
        self.turns[-1].answer += token_ids

    def roll_back(self, num_tokens_kept: int) -> None:
        present = self.turns[-1]
        del present.answer[num_tokens_kept - self.first_index :]
        del self._ids[present.answer_position + len(present.answer) :]

    def add_user_turn(self, content: str) -> None:
        tail = self.turns[-1].answer[-2:]
        self._begin(self._renderer.user_turn(content, self.opening.thinking, tail))

    def prompt_verdicts(self) -> list[Verdict]:
        return [model_verdict(self._ids[: turn.query_position + 1], is_query=True) for turn in self.turns]

    def answer_verdicts(self, turn: TrueTurn) -> list[Verdict]:
        start = turn.answer_position
        return [model_verdict(self._ids[: start + offset + 1]) for offset in range(len(turn.answer))]

    def scaffold(self, turn: TrueTurn) -> list[bool]:
        return [bool(mark) for mark in self._renderer.scaffold.marks(turn.answer, None)]

    def rises(self, number: int) -> list[oracle.Expected]:
        """Every rise of the decision on the answer of a turn, with indices of the stream."""
        turn = self.turns[number]
        first = sum(len(earlier.answer) for earlier in self.turns[:number])
        rises = oracle.rises(self.opening.policy, self.answer_verdicts(turn), self.scaffold(turn))
        return [
            oracle.Expected(one.action, one.token_index + first, one.cut_index + first, one.risk_level, one.category)
            for one in rises
        ]

    def prompt_action(self, number: int) -> Action:
        policy, verdict = self.opening.policy, self.prompt_verdicts()[number]
        (level,) = oracle.counted_levels(policy, [verdict], [False]).values()
        return oracle.action_for(policy, policy.user, level, verdict.category)

    def _begin(self, rendered: RenderedTurn) -> None:
        start = len(self._ids)
        self._ids += rendered.token_ids
        self.turns.append(TrueTurn(start + rendered.query_index, len(self._ids)))


class Caller:
    """Keeps what it is told on an EVERY_TOKEN stream, and checks that it comes in an order the protocol allows."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.opened: ev.StreamOpened | None = None
        self.prompts: list[Verdict] = []
        self.verdicts: list[Verdict] = []
        self.scaffold: list[bool] = []
        self.decisions: list[Decision] = []
        self.num_rollbacks = 0
        self.summary: ev.SummaryGiven | None = None

    def take(self, update: ev.Update) -> None:
        assert self.summary is None, "nothing follows the summary"
        assert (self.opened is None) == isinstance(update, ev.StreamOpened), "`opened` is the first, and only the first"
        match update:
            case ev.StreamOpened():
                self.opened = update
            case ev.PromptVerdict():
                assert update.turn == len(self.prompts)
                self.prompts.append(update.verdict)
            case ev.TokenVerdicts():
                assert update.start_index == len(self.verdicts), "one verdict a token, in order"
                self.verdicts += unpacked(update.verdicts)
                self.scaffold += map(bool, update.scaffold or bytes(len(update.verdicts)))
            case ev.DecisionTaken():
                self._take_decision(update)
            case ev.RolledBack():
                self._roll_back(update)
            case ev.SummaryGiven():
                self.summary = update

    def check(self, truth: Truth) -> None:
        """Whether what was told, and not taken back, is the truth about a finished stream."""
        assert self.prompts == truth.prompt_verdicts()
        assert self.verdicts == [verdict for turn in truth.turns for verdict in truth.answer_verdicts(turn)]
        assert self.scaffold == [mark for turn in truth.turns for mark in truth.scaffold(turn)]
        for number in range(len(truth.turns)):
            told = [
                (one.action, one.token_index, one.cut_index, one.risk_level, one.category)
                for one in self.decisions_on(Role.ASSISTANT, number)
            ]
            assert told == [astuple(rise) for rise in truth.rises(number)]
            prompt_actions = [one.action for one in self.decisions_on(Role.USER, number)]
            expected = truth.prompt_action(number)
            assert prompt_actions == ([expected] if expected > Action.ALLOW else [])
        self._check_summary(truth)

    def decisions_on(self, role: Role, turn: int) -> list[Decision]:
        return [one for one in self.decisions if (one.role, one.turn) == (role, turn)]

    def _take_decision(self, update: ev.DecisionTaken) -> None:
        decision = update.decision
        before = [one.action for one in self.decisions_on(decision.role, decision.turn)]
        assert decision.action > max(before, default=Action.ALLOW), "a decision only rises"
        assert update.enforced is not self._policy.observe_only
        if decision.role is Role.ASSISTANT:
            assert decision.token_index < len(self.verdicts), "a decision follows the verdict that it rests on"
        self.decisions.append(decision)

    def _roll_back(self, update: ev.RolledBack) -> None:
        kept, self.num_rollbacks = update.num_tokens_kept, self.num_rollbacks + 1
        del self.verdicts[kept:], self.scaffold[kept:]
        self.decisions = [one for one in self.decisions if one.role is Role.USER or one.token_index < kept]
        turn = max((one.turn for one in self.decisions), default=0)
        assert update.action in (Action.ALLOW, *(one.action for one in self.decisions_on(Role.ASSISTANT, turn)))

    def _check_summary(self, truth: Truth) -> None:
        summary, policy, present = self.summary, self._policy, truth.turns[-1]
        assert summary is not None
        assert summary.end_reason is ev.EndReason.FINISHED
        assert summary.num_tokens == truth.num_pushed
        assert summary.prompt == ev.PromptVerdict(len(truth.turns) - 1, truth.prompt_verdicts()[-1])
        level = oracle.answer_level(policy, truth.answer_verdicts(present), truth.scaffold(present))
        assert (summary.risk_level, summary.category) == (level if present.answer else (None, None))
        numbers = range(len(truth.turns))
        actions = [truth.prompt_action(number) for number in numbers]
        actions += [rise.action for number in numbers for rise in truth.rises(number)]
        assert summary.action is max(actions)
        counted = [
            level
            for turn in truth.turns
            for level in oracle.counted_levels(policy, truth.answer_verdicts(turn), truth.scaffold(turn)).values()
        ]
        assert summary.num_tokens_by_level == {level: counted.count(level) for level in RiskLevel}
