import pytest

from guardwire_server.core.policy import (
    BUILT_IN_POLICIES,
    Action,
    AnswerJudge,
    Debounce,
    DecisionReason,
    Policy,
    Strictness,
    TurnRules,
    decide_prompt,
    describe,
)
from guardwire_server.core.verdict import Category, RiskLevel, Role
from tests.core.fakes import verdict

S, C, U = RiskLevel.SAFE, RiskLevel.CONTROVERSIAL, RiskLevel.UNSAFE


def policy(debounce: Debounce = Debounce.SAME_LEVEL, *, strictness: Strictness = Strictness.STRICT) -> Policy:
    return Policy("p", "", debounce=debounce, strictness=strictness)


def judge_all(judge: AnswerJudge, levels: list[RiskLevel], scaffold: tuple[int, ...] = ()) -> list[tuple[Action, int]]:
    """(action, token index) of every rise."""
    decisions = [judge.judge(verdict(level), scaffold=index in scaffold) for index, level in enumerate(levels)]
    return [(decision.action, decision.token_index) for decision in decisions if decision]


@pytest.mark.parametrize(
    ("debounce", "levels", "first_hit"),
    [
        (Debounce.SAME_LEVEL, [U, U], 1),
        (Debounce.SAME_LEVEL, [C, C], 1),
        (Debounce.SAME_LEVEL, [U, C, U, C], None),
        (Debounce.SAME_LEVEL, [U, S, U], None),
        (Debounce.SAME_LEVEL, [S, C, U, U], 3),
        (Debounce.ANY_RISK, [U, C], 1),
        (Debounce.ANY_RISK, [C, U], 1),
        (Debounce.ANY_RISK, [U, S, C, S], None),
        (Debounce.NONE, [S, S, U], 2),
        (Debounce.NONE, [C], 0),
        (Debounce.NONE, [S], None),
    ],
)
def test_debounce(debounce: Debounce, levels: list[RiskLevel], first_hit: int | None) -> None:
    hits = judge_all(AnswerJudge(policy(debounce), turn=0, first_index=0), levels)
    assert hits == ([] if first_hit is None else [(Action.BLOCK, first_hit)])


def test_scaffold_neither_raises_nor_stands_between_two_tokens_of_a_run() -> None:
    judge = AnswerJudge(policy(), turn=0, first_index=0)
    assert judge_all(judge, [U, U, U, S, U, U], scaffold=(0, 1, 3)) == [(Action.BLOCK, 4)]
    decision = judge.state.decision
    assert decision is not None
    assert decision.cut_index == 2
    assert [judge.count(level) for level in RiskLevel] == [0, 0, 3]


def test_loose_counts_controversial_as_safe_and_strict_as_unsafe() -> None:
    for strictness, expected in ((Strictness.LOOSE, []), (Strictness.STRICT, [(Action.BLOCK, 1)])):
        judge = AnswerJudge(policy(strictness=strictness), turn=0, first_index=0)
        assert judge_all(judge, [C, C]) == expected
        assert judge.state.risk_level is C  # the verdict stays what it is; only the action differs


def test_a_decision_rises_from_flag_to_block_and_never_falls() -> None:
    rules = TurnRules(unsafe=Action.BLOCK, controversial=Action.FLAG)
    judge = AnswerJudge(Policy("p", "", assistant=rules), turn=0, first_index=0)
    assert judge_all(judge, [C, C, C, U, U, C, C, U, U, S]) == [(Action.FLAG, 1), (Action.BLOCK, 4)]
    assert judge.action is Action.BLOCK


def test_minimum_probability_is_inclusive() -> None:
    demanding = Policy("p", "", min_probability=0.75, debounce=Debounce.NONE)
    assert demanding.counted_level(verdict(U, 0.75)) is U
    assert demanding.counted_level(verdict(U, 0.7490234375)) is S


def test_a_category_has_its_own_action_also_for_controversial_in_strict_mode() -> None:
    rules = TurnRules(unsafe=Action.BLOCK, categories={Category.PII: Action.FLAG})
    strict = Policy("p", "", strictness=Strictness.STRICT, assistant=rules)
    assert strict.action(Role.ASSISTANT, U, Category.PII) is Action.FLAG
    assert strict.action(Role.ASSISTANT, C, Category.PII) is Action.FLAG
    assert strict.action(Role.ASSISTANT, U, Category.VIOLENT) is Action.BLOCK
    assert strict.action(Role.ASSISTANT, U, None) is Action.BLOCK
    assert strict.action(Role.ASSISTANT, S, None) is Action.ALLOW


def test_a_system_message_counts_as_the_users() -> None:
    asked = policy()
    assert asked.rules(Role.SYSTEM) is asked.rules(Role.USER) is asked.user
    assert asked.rules(Role.ASSISTANT) is asked.assistant


def test_a_decision_tells_where_and_why() -> None:
    judge = AnswerJudge(policy(), turn=3, first_index=40)
    judge.judge(verdict(S), scaffold=False)
    judge.judge(verdict(U, category=Category.PII), scaffold=False)
    decision = judge.judge(verdict(U, category=Category.VIOLENT), scaffold=False)
    assert decision is not None
    assert (decision.turn, decision.role, decision.reason) == (3, Role.ASSISTANT, DecisionReason.VERDICT)
    assert (decision.token_index, decision.cut_index) == (42, 41)
    assert (decision.risk_level, decision.category) == (U, Category.VIOLENT)
    assert decision.explanation == (
        "the answer is Unsafe (Violent) from token 41 on (same_level, token 42): policy 'p' says BLOCK"
    )


def test_truncation_takes_a_decision_back() -> None:
    judge = AnswerJudge(policy(), turn=0, first_index=10)
    judge_all(judge, [S, U, U, U])
    judge.truncate(13)
    assert judge.action is Action.BLOCK
    judge.truncate(12)
    assert (judge.action, judge.next_index, judge.state.risk_level) == (Action.ALLOW, 12, S)
    judge.truncate(99)
    assert judge.next_index == 12
    judge.truncate(0)
    assert judge.next_index == 10


def test_prompt_decision() -> None:
    decision = decide_prompt(policy(), verdict(U, category=Category.JAILBREAK), turn=2, token_index=7)
    assert (decision.action, decision.role, decision.turn) == (Action.FLAG, Role.USER, 2)
    assert (decision.token_index, decision.cut_index, decision.category) == (7, 7, Category.JAILBREAK)


def test_a_prompt_below_the_threshold_is_safe_without_category() -> None:
    demanding = Policy("p", "", min_probability=0.9)
    decision = decide_prompt(demanding, verdict(U, 0.75), turn=0, token_index=0)
    assert (decision.action, decision.risk_level, decision.category) == (Action.ALLOW, S, None)


def test_descriptions() -> None:
    assert describe(U, Category.SUICIDE_AND_SELF_HARM) == "Unsafe (Suicide & Self-Harm)"
    assert describe(S, None) == "Safe"


def test_built_in_policies() -> None:
    named = {policy.name: policy for policy in BUILT_IN_POLICIES}
    assert list(named) == ["default", "strict", "observe"]
    assert all(policy.on_error is Action.BLOCK and policy.description for policy in BUILT_IN_POLICIES)
    assert [policy.observe_only for policy in BUILT_IN_POLICIES] == [False, False, True]
    actions = {
        name: [policy.action(role, level, None) for role in (Role.USER, Role.ASSISTANT) for level in (C, U)]
        for name, policy in named.items()
    }
    allow, flag, block = Action
    assert actions == {
        "default": [allow, flag, allow, block],
        "strict": [block, block, block, block],
        "observe": [flag, flag, flag, block],
    }
