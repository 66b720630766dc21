"""Policies: what is done about verdicts.

A verdict is the model's word on one token; a decision is the policy's word on a whole text. Between them stand

1. the probability threshold: a token counts as risky only if its level is at least `min_probability` probable;
2. the debounce rule: when a run of risky tokens counts (see `Debounce`);
3. strictness: whether Controversial counts as Unsafe or as Safe;
4. the rules of the turn: which action Unsafe, Controversial and each category mean.

A decision latches: within one answer it rises and never falls, except by `AnswerJudge.truncate`, after which it is
what it would be had the dropped tokens never come.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from guardwire_server.core.verdict import CATEGORY_NAMES, Category, RiskLevel, Role, Verdict, VerdictArrays


class Action(IntEnum):
    """What to do about a text, in rising order."""

    ALLOW = 1
    FLAG = 2
    BLOCK = 3


class Strictness(Enum):
    """How Controversial counts (Qwen3Guard technical report, section 3: loose and strict mode)."""

    LOOSE = "loose"
    STRICT = "strict"


class Debounce(Enum):
    """When a run of risky tokens counts.

    SAME_LEVEL: at the second of two consecutive tokens of the same risky level, at that level; Unsafe outranks
    Controversial. Source: the streaming evaluation script in QwenLM/Qwen3Guard.
    ANY_RISK: at token i if tokens i - 1 and i are each Unsafe or Controversial, at the level of token i. Source:
    Qwen3Guard technical report (arXiv 2510.14276), section 4.4.
    NONE: at every risky token.
    """

    SAME_LEVEL = "same_level"
    ANY_RISK = "any_risk"
    NONE = "none"


class DecisionReason(Enum):
    """Why a decision was taken."""

    VERDICT = "verdict"
    NOT_JUDGED = "not_judged"


_SAFE = int(RiskLevel.SAFE)  # to look up the level takes longer than to note it


@dataclass(frozen=True, slots=True)
class TurnRules:
    """What is done about one side's text; `controversial` None means: by the policy's strictness."""

    unsafe: Action
    controversial: Action | None = None
    categories: Mapping[Category, Action] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of rules. `on_error` is the action for what could not be judged; it is never ALLOW by default."""

    name: str
    description: str
    strictness: Strictness = Strictness.LOOSE
    debounce: Debounce = Debounce.SAME_LEVEL
    min_probability: float = 0.0
    user: TurnRules = field(default_factory=lambda: TurnRules(unsafe=Action.FLAG))
    assistant: TurnRules = field(default_factory=lambda: TurnRules(unsafe=Action.BLOCK))
    on_error: Action = Action.BLOCK
    observe_only: bool = False

    def rules(self, role: Role) -> TurnRules:
        """The rules for what `role` wrote; an operator's system message counts as the user's."""
        return self.assistant if role is Role.ASSISTANT else self.user

    def action(self, role: Role, risk_level: RiskLevel, category: Category | None) -> Action:
        """What is done about a text of `role` that was judged so; strictness turns Controversial into its neighbour."""
        rules = self.rules(role)
        if risk_level is RiskLevel.CONTROVERSIAL:
            if rules.controversial is not None:
                return rules.controversial
            risk_level = RiskLevel.UNSAFE if self.strictness is Strictness.STRICT else RiskLevel.SAFE
        if risk_level is RiskLevel.SAFE:
            return Action.ALLOW
        return rules.categories.get(category, rules.unsafe) if category else rules.unsafe

    def counted_level(self, verdict: Verdict) -> RiskLevel:
        """The verdict's level, or SAFE where its probability is below `min_probability`."""
        if verdict.probabilities.of(verdict.risk_level) < self.min_probability:
            return RiskLevel.SAFE
        return verdict.risk_level


BUILT_IN_POLICIES: tuple[Policy, ...] = (
    Policy(
        name="default",
        description="Blocks unsafe answers, flags unsafe prompts, lets controversial text pass.",
    ),
    Policy(
        name="strict",
        description="Counts controversial text as unsafe and blocks unsafe prompts too.",
        strictness=Strictness.STRICT,
        user=TurnRules(unsafe=Action.BLOCK),
    ),
    Policy(
        name="observe",
        description="Decides like `default`, flags controversial text, and enforces nothing.",
        user=TurnRules(unsafe=Action.FLAG, controversial=Action.FLAG),
        assistant=TurnRules(unsafe=Action.BLOCK, controversial=Action.FLAG),
        observe_only=True,
    ),
)
"""The policies of a server whose configuration names none of its own; `default` always exists."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy makes of one text.

    `token_index` is the token at which it fell and `cut_index` the first one that should not be shown: the beginning of
    the run of risky tokens. For prompts both are the index of the next token to be pushed.
    """

    action: Action
    role: Role
    turn: int
    token_index: int
    cut_index: int
    risk_level: RiskLevel | None
    category: Category | None
    reason: DecisionReason
    explanation: str


def describe(risk_level: RiskLevel, category: Category | None) -> str:
    """`Unsafe (Violent)`, for people."""
    name = risk_level.name.capitalize()
    return f"{name} ({CATEGORY_NAMES[category]})" if category else name


def decide_prompt(policy: Policy, verdict: Verdict, *, turn: int, token_index: int) -> Decision:
    """The decision about a user message; its verdict is one reading, so there is nothing to debounce."""
    level = policy.counted_level(verdict)
    category = verdict.category if level is not RiskLevel.SAFE else None
    action = policy.action(Role.USER, level, category)
    explanation = f"the prompt is {describe(level, category)}: policy '{policy.name}' says {action.name}"
    return Decision(
        action, Role.USER, turn, token_index, token_index, level, category, DecisionReason.VERDICT, explanation
    )


@dataclass(frozen=True, slots=True)
class AnswerState:
    """What an answer amounts to after some token: its level under the debounce rule and the decision in force."""

    risk_level: RiskLevel
    category: Category | None
    decision: Decision | None


class AnswerJudge:
    """Applies one policy to one answer, token by token.

    Owner: the session. Invariant: the state depends only on the tokens that are in it, not on how they came (chunks,
    rollbacks). Indices are token indices of the stream, so the first token of the answer has `first_index`.
    """

    def __init__(self, policy: Policy, *, turn: int, first_index: int) -> None:
        self._policy = policy
        self._turn = turn
        self._first_index = first_index
        self._levels = array("B")  # counted level of each token, 0 for scaffold
        self._changes: list[tuple[int, AnswerState]] = []  # (token index, state from then on), rising

    @property
    def next_index(self) -> int:
        """The index of the token that is judged next."""
        return self._first_index + len(self._levels)

    @property
    def state(self) -> AnswerState:
        """What the answer amounts to now."""
        return self._changes[-1][1] if self._changes else AnswerState(RiskLevel.SAFE, None, None)

    @property
    def action(self) -> Action:
        """The action in force."""
        decision = self.state.decision
        return decision.action if decision else Action.ALLOW

    def judge_run(self, verdicts: VerdictArrays, scaffold_marks: "bytes | bytearray") -> list[Decision]:
        """Takes the verdicts on the next tokens, each with a mark (0 or 1); returns the decisions that rise among them.

        The same as `judge` token by token; most runs are harmless all through, and those are only counted.
        """
        num_tokens = len(verdicts)
        if not any(scaffold_marks) and verdicts.risk_levels.count(RiskLevel.SAFE) == num_tokens:
            self._levels.extend(verdicts.risk_levels)
            return []
        decisions = (
            self.judge(verdicts[offset], scaffold=bool(scaffold_marks[offset])) for offset in range(num_tokens)
        )
        return [decision for decision in decisions if decision]

    def pass_safe(self) -> None:
        """Takes a SAFE verdict on the next token, which is no scaffold."""
        self._levels.append(_SAFE)

    def judge(self, verdict: Verdict, *, scaffold: bool) -> Decision | None:
        """Takes the next token's verdict; returns the decision if it rises here.

        Scaffold tokens are passed over: they neither raise a decision nor stand between two tokens of a run.
        """
        index = self.next_index
        if scaffold:
            self._levels.append(0)
            return None
        level = self._policy.counted_level(verdict)
        if level is RiskLevel.SAFE:
            self._levels.append(level)
            return None
        previous = self._previous_scored()
        self._levels.append(level)
        run_start = self._run_start(level, previous, index)
        if run_start is None:
            return None
        return self._raise_to(level, verdict.category, index, run_start)

    def truncate(self, next_index: int) -> None:
        """Forgets the tokens from `next_index` on."""
        del self._levels[max(0, next_index - self._first_index) :]
        while self._changes and self._changes[-1][0] >= next_index:
            self._changes.pop()

    def count(self, risk_level: RiskLevel) -> int:
        """How many tokens counted at that level, scaffold aside."""
        return self._levels.count(risk_level)

    def _previous_scored(self) -> tuple[int, RiskLevel] | None:
        for offset in range(len(self._levels) - 1, -1, -1):
            if self._levels[offset]:
                return self._first_index + offset, RiskLevel(self._levels[offset])
        return None

    def _run_start(self, level: RiskLevel, previous: tuple[int, RiskLevel] | None, index: int) -> int | None:
        """Where the run that counts at risky token `index` begins, or None if none counts there."""
        if self._policy.debounce is Debounce.NONE:
            return index
        if previous is None or previous[1] is RiskLevel.SAFE:
            return None
        if self._policy.debounce is Debounce.SAME_LEVEL and previous[1] is not level:
            return None
        return previous[0]

    def _raise_to(self, level: RiskLevel, category: Category | None, index: int, run_start: int) -> Decision | None:
        state = self.state
        action = self._policy.action(Role.ASSISTANT, level, category)
        decision = None
        if action > self.action:
            explanation = (
                f"the answer is {describe(level, category)} from token {run_start} on "
                f"({self._policy.debounce.value}, token {index}): policy '{self._policy.name}' says {action.name}"
            )
            decision = Decision(
                action,
                Role.ASSISTANT,
                self._turn,
                index,
                run_start,
                level,
                category,
                DecisionReason.VERDICT,
                explanation,
            )
        if decision or level > state.risk_level:
            risen = level > state.risk_level
            self._changes.append(
                (
                    index,
                    AnswerState(
                        risk_level=level if risen else state.risk_level,
                        category=category if risen else state.category,
                        decision=decision or state.decision,
                    ),
                )
            )
        return decision
