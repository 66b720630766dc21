"""The policies' rules by brute force, written from their texts: each token looks at the whole answer again."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from guardwire_server.core.policy import Action, Debounce, Policy, Strictness, TurnRules
from guardwire_server.core.verdict import Category, RiskLevel, Verdict

_RISKY = (RiskLevel.CONTROVERSIAL, RiskLevel.UNSAFE)


@dataclass(frozen=True)
class Expected:
    """One rise of the decision."""

    action: Action
    token_index: int
    cut_index: int
    risk_level: RiskLevel
    category: Category | None


def counted_levels(policy: Policy, verdicts: Sequence[Verdict], scaffold: Sequence[bool]) -> dict[int, RiskLevel]:
    """The level of each token that is not scaffold; one that is not probable enough is no risk."""
    levels = {}
    for index, one in enumerate(verdicts):
        if not scaffold[index]:
            is_probable = one.probabilities.of(one.risk_level) >= policy.min_probability
            levels[index] = one.risk_level if is_probable else RiskLevel.SAFE
    return levels


def hits(policy: Policy, levels: dict[int, RiskLevel]) -> list[tuple[int, int]]:
    """(token at which a run counts, where the run begins), in token order."""
    if policy.debounce is Debounce.NONE:
        return [(index, index) for index, level in levels.items() if level in _RISKY]
    indices = sorted(levels)
    pairs = [(second, first) for first, second in itertools.pairwise(indices)]
    both_risky = [(i, j) for i, j in pairs if levels[i] in _RISKY and levels[j] in _RISKY]
    if policy.debounce is Debounce.ANY_RISK:
        return both_risky
    return [(i, j) for i, j in both_risky if levels[i] is levels[j]]


def official_level(levels: Sequence[RiskLevel]) -> RiskLevel:
    """The official evaluation's word on a whole answer: two consecutive Unsafe, else two consecutive Controversial."""
    pairs = list(itertools.pairwise(levels))
    for level in (RiskLevel.UNSAFE, RiskLevel.CONTROVERSIAL):
        if (level, level) in pairs:
            return level
    return RiskLevel.SAFE


def action_for(policy: Policy, rules: TurnRules, level: RiskLevel, category: Category | None) -> Action:
    """The rules of a turn, case by case."""
    unsafe = rules.categories.get(category, rules.unsafe) if category else rules.unsafe
    if level is RiskLevel.UNSAFE:
        return unsafe
    if level is RiskLevel.SAFE:
        return Action.ALLOW
    if rules.controversial is not None:
        return rules.controversial
    return unsafe if policy.strictness is Strictness.STRICT else Action.ALLOW


def rises(policy: Policy, verdicts: Sequence[Verdict], scaffold: Sequence[bool]) -> list[Expected]:
    """Every rise of the decision over an answer whose first token has the index 0."""
    levels = counted_levels(policy, verdicts, scaffold)
    found: list[Expected] = []
    for index, run_start in hits(policy, levels):
        category = verdicts[index].category
        action = action_for(policy, policy.assistant, levels[index], category)
        if action > max((rise.action for rise in found), default=Action.ALLOW):
            found.append(Expected(action, index, run_start, levels[index], category))
    return found


def answer_level(
    policy: Policy, verdicts: Sequence[Verdict], scaffold: Sequence[bool]
) -> tuple[RiskLevel, Category | None]:
    """The highest level that counted, with the category of the token at which it first did."""
    levels = counted_levels(policy, verdicts, scaffold)
    counted = [(levels[index], verdicts[index].category) for index, _ in hits(policy, levels)]
    highest = max((level for level, _ in counted), default=RiskLevel.SAFE)
    return highest, next((category for level, category in counted if level is highest), None)
