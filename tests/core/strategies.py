"""Hypothesis strategies for policies and verdicts, and the bounded settings of the property tests."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from guardwire_server.core.policy import Action, Debounce, Policy, Strictness, TurnRules
from guardwire_server.core.verdict import Category, RiskLevel, Verdict
from tests.core.fakes import verdict

BOUNDED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STATEFUL = settings(BOUNDED, max_examples=20, stateful_step_count=40)

_actions = st.sampled_from(Action)
_categories = st.sampled_from((Category.VIOLENT, Category.PII, Category.COPYRIGHT_VIOLATION))


def turn_rules() -> st.SearchStrategy[TurnRules]:
    """Rules of one side, often with actions of their own for some categories."""
    return st.builds(
        TurnRules,
        unsafe=_actions,
        controversial=st.none() | _actions,
        categories=st.dictionaries(_categories, _actions, max_size=2),
    )


def policies() -> st.SearchStrategy[Policy]:
    """Any policy."""
    return st.builds(
        Policy,
        name=st.just("any"),
        description=st.just(""),
        strictness=st.sampled_from(Strictness),
        debounce=st.sampled_from(Debounce),
        min_probability=st.sampled_from((0.0, 0.5, 0.75, 0.875)),
        user=turn_rules(),
        assistant=turn_rules(),
        on_error=_actions,
        observe_only=st.booleans(),
    )


def verdicts() -> st.SearchStrategy[Verdict]:
    """Any verdict, near and on the thresholds of `policies`."""
    return st.builds(verdict, st.sampled_from(RiskLevel), st.sampled_from((0.5, 0.625, 0.75, 0.875)), _categories)
