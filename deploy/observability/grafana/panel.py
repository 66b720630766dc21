"""What a dashboard is made of, and the PromQL that its panels share.

Rates are over `$__rate_interval`, which Grafana chooses to hold at least four scrapes. Calls are chosen by their
method, since other services under the same conventions have a metric of that name too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HERE = 'job=~"$job", instance=~"$instance"'
"""The servers that the dashboard's variables choose."""

CALLS = f'rpc_method=~"guardwire[.]v1[.]ModerationService/.*", {HERE}'
CLASSIFY = f'rpc_method="guardwire.v1.ModerationService/Classify", {HERE}'
FAULTS = 'rpc_response_status_code=~"INTERNAL|UNAVAILABLE|UNKNOWN|DATA_LOSS"'

CALL_DURATION = "rpc_server_call_duration_seconds"

SECONDS, SHARE, COUNT, DAYS, TIME = "s", "percentunit", "none", "d", "dateTimeFromNow"
"""Units by Grafana's names; `count:NAME` is one of our own."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A time series, or a single number if `kind` is `stat`.

    Attributes:
        title: What it shows, in a few words.
        description: What it shows, for whoever sees it for the first time.
        unit: Of its values.
        queries: PromQL by legend, which may name labels as `{{label}}`.
        kind: `timeseries` or `stat`.
        width: Columns out of 24.
        is_stacked: Whether the series add up to something.
        color: Of the number, for `stat`, below the first threshold.
        thresholds: Other colours from a value on.
    """

    title: str
    description: str
    unit: str
    queries: Mapping[str, str]
    kind: str = "timeseries"
    width: int = 8
    is_stacked: bool = False
    color: str = "green"
    thresholds: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, laid out in their order."""

    title: str
    panels: Sequence[Panel]


def rate(metric: str, by: str = "", selector: str = HERE) -> str:
    """How much a counter rises a second, over all servers."""
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}(rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, by: str = "", selector: str = HERE) -> str:
    """What so large a share of a histogram's values does not exceed."""
    return f"histogram_quantile({share:g}, {rate(f'{histogram}_bucket', f'{by}, le' if by else 'le', selector)})"


def quantiles(
    histogram: str, by: str = "", selector: str = HERE, shares: Sequence[float] = (0.5, 0.9, 0.99)
) -> dict[str, str]:
    """Several quantiles, by legend."""
    label = f" {{{{{by}}}}}" if by else ""
    return {f"p{share * 100:g}{label}": quantile(share, histogram, by, selector) for share in shares}


def mean(histogram: str, by: str) -> str:
    """The mean of a histogram's values."""
    return f"{rate(f'{histogram}_sum', by)} / {rate(f'{histogram}_count', by)}"


def with_method(expr: str) -> str:
    """Adds the label `method`, the last part of `rpc_method`."""
    return f'label_replace({expr}, "method", "$1", "rpc_method", ".*/(.*)")'
