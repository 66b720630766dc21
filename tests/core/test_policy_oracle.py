"""AnswerJudge against the rules by brute force, and against itself with tokens taken back."""

from dataclasses import astuple

from hypothesis import given
from hypothesis import strategies as st

from guardwire_server.core.policy import AnswerJudge, Debounce, Policy, decide_prompt
from guardwire_server.core.verdict import Category, RiskLevel, Verdict
from tests.core import oracle
from tests.core.fakes import packed
from tests.core.strategies import BOUNDED, policies, verdicts

Token = tuple[Verdict, bool]
answers = st.lists(st.tuples(verdicts(), st.sampled_from((False, False, False, True))), max_size=14)


def judged(policy: Policy, tokens: list[Token]) -> AnswerJudge:
    judge = AnswerJudge(policy, turn=0, first_index=0)
    for verdict, scaffold in tokens:
        judge.judge(verdict, scaffold=scaffold)
    return judge


def split(tokens: list[Token]) -> tuple[list[Verdict], list[bool]]:
    return [verdict for verdict, _ in tokens], [scaffold for _, scaffold in tokens]


@BOUNDED
@given(policies(), answers)
def test_decisions_are_those_of_the_rules(policy: Policy, tokens: list[Token]) -> None:
    judge = AnswerJudge(policy, turn=0, first_index=0)
    decisions = [judge.judge(verdict, scaffold=scaffold) for verdict, scaffold in tokens]
    found = [
        (one.action, one.token_index, one.cut_index, one.risk_level, one.category)
        for one in decisions
        if one is not None
    ]
    assert found == [astuple(rise) for rise in oracle.rises(policy, *split(tokens))]


@BOUNDED
@given(policies(), st.lists(answers, max_size=4))
def test_runs_are_judged_as_their_tokens(policy: Policy, runs: list[list[Token]]) -> None:
    together, apart = (AnswerJudge(policy, turn=0, first_index=0) for _ in range(2))
    for run in runs:
        tokens, marks = split(run)
        decisions = [apart.judge(verdict, scaffold=scaffold) for verdict, scaffold in run]
        assert together.judge_run(packed(tokens), bytes(marks)) == [one for one in decisions if one]
        assert (together.state, together.next_index) == (apart.state, apart.next_index)


@BOUNDED
@given(policies(), answers)
def test_levels_are_those_of_the_rules(policy: Policy, tokens: list[Token]) -> None:
    judge = judged(policy, tokens)
    levels = list(oracle.counted_levels(policy, *split(tokens)).values())
    assert (judge.state.risk_level, judge.state.category) == oracle.answer_level(policy, *split(tokens))
    assert [judge.count(level) for level in RiskLevel] == [levels.count(level) for level in RiskLevel]
    if policy.debounce is Debounce.SAME_LEVEL:
        assert judge.state.risk_level is oracle.official_level(levels)


@BOUNDED
@given(policies(), answers, answers, answers)
def test_tokens_taken_back_were_never_there(
    policy: Policy, kept: list[Token], dropped: list[Token], added: list[Token]
) -> None:
    judge = judged(policy, kept + dropped)
    judge.truncate(len(kept))
    fresh = judged(policy, kept)
    assert (judge.state, judge.next_index) == (fresh.state, fresh.next_index)
    for verdict, scaffold in added:
        assert judge.judge(verdict, scaffold=scaffold) == fresh.judge(verdict, scaffold=scaffold)
    assert (judge.state, judge.action) == (fresh.state, fresh.action)


@BOUNDED
@given(policies(), verdicts())
def test_prompts_are_judged_by_one_reading(policy: Policy, verdict: Verdict) -> None:
    decision = decide_prompt(policy, verdict, turn=0, token_index=0)
    (level,) = oracle.counted_levels(policy, [verdict], [False]).values()
    category: Category | None = None if level is RiskLevel.SAFE else verdict.category
    assert (decision.risk_level, decision.category) == (level, category)
    assert decision.action is oracle.action_for(policy, policy.user, level, category)
