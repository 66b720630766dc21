"""The tests' own reading of PromQL, which the others rely on."""

import pytest

from tests.observability.promql import grouping, matched, series


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up == 0", {"up"}),
        ('up{job="x"} and on (job) max_over_time(b_c[1d])', {"up", "b_c"}),
        ("sum by (job, le) (rate(a_bucket[5m])) / sum(rate(a_count[5m]))", {"a_bucket", "a_count"}),
        ('label_replace(rate(a{b=~"c|d"}[$__rate_interval]), "method", "$1", "rpc_method", ".*/(.*)")', {"a"}),
        ("(a unless a offset 15m) or increase(a[15m]) > bool 1e3", {"a"}),
        ("job:x:ratio_rate5m > 14.4 * 0.001", {"job:x:ratio_rate5m"}),
        ("min(a) - time() < 14 * 86400", {"a"}),
    ],
)
def test_series(expression: str, expected: set[str]) -> None:
    assert series(expression) == expected


def test_labels() -> None:
    expression = 'sum by (job, le) (rate(a{b=~"c, d=~", e!="f"}[5m])) and on (instance) g{h="by (i)"}'
    assert grouping(expression) == {"job", "le", "instance"}
    assert matched(expression) == {"b", "e", "h"}
