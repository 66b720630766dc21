"""The contract of the metrics: every instrument, as Prometheus spells it, whichever way it gets there."""

from guardwire_server.telemetry.instruments import COUNTERS, GAUGES, HISTOGRAMS, OBSERVED_COUNTERS, Declaration
from tests.observability.contract import METRICS, SERIES, SUFFIXES

KINDS: dict[str, tuple[Declaration, ...]] = {
    "histogram": HISTOGRAMS,
    "counter": (*COUNTERS, *OBSERVED_COUNTERS),
    "gauge": GAUGES,
}


def spelled(declared: Declaration) -> str:
    """How Prometheus spells an instrument, without the suffixes of its kind."""
    return declared.name.replace(".", "_") + ("_seconds" if declared.unit == "s" else "")


def test_every_instrument_is_in_the_contract() -> None:
    declared = {one.name: (spelled(one), kind) for kind, all_of in KINDS.items() for one in all_of}
    assert declared == {name: (metric.name, metric.kind) for name, metric in METRICS.items()}


def test_names_are_the_same_through_a_collector() -> None:
    """Collectors append `_ratio` to gauges of unit 1, unless it is there; our own page appends nothing."""
    units = {one.unit for all_of in KINDS.values() for one in all_of}
    assert all(unit in ("s", "1") or (unit.startswith("{") and unit.endswith("}")) for unit in units)
    assert [one.name for one in GAUGES if (one.unit == "1") != one.name.endswith("_ratio")] == []


def test_series_of_different_metrics_have_different_names() -> None:
    assert len(SERIES) == sum(len(SUFFIXES[metric.kind]) for metric in METRICS.values())
