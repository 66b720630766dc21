"""The search for markers finds them in whatever form they come."""

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.telemetry.markers import MARKED_IDS, UNKNOWN_ID, find_markers, find_markers_in, marker


@pytest.mark.parametrize(
    "leak",
    [
        marker("anywhere"),
        marker("anywhere")[:6],  # cut short
        marker("anywhere").upper(),
        marker("anywhere").encode().hex(),
        f"tokens.token_ids[0]: {UNKNOWN_ID} is not a token",
        f"[{', '.join(map(str, MARKED_IDS))}]",
        f"array('i', [1, {', '.join(map(str, MARKED_IDS[1:4]))}])",
    ],
)
def test_the_search_finds_what_it_should(leak: str) -> None:
    assert find_markers(f"so {leak} it is")


@pytest.mark.parametrize(
    "value",
    [
        AnyValue(string_value=marker("anywhere")),
        AnyValue(bytes_value=marker("anywhere").encode()),
        AnyValue(int_value=UNKNOWN_ID),
        AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=token_id) for token_id in MARKED_IDS])),
    ],
)
def test_the_search_finds_what_it_should_in_messages(value: AnyValue) -> None:
    assert find_markers_in(Span(name="a", attributes=[KeyValue(key="key", value=value)]))


def test_the_search_finds_nothing_else() -> None:
    assert not find_markers(f"{UNKNOWN_ID}0 1{UNKNOWN_ID} {MARKED_IDS[0]} {MARKED_IDS[1]} Zq7V x")
