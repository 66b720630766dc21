"""How YAML's scalars are read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue

from guardwire_server.settings_file import read_settings


class Anything(BaseModel):
    value: JsonValue


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def value_of(path: Path, text: str) -> Any:  # noqa: ANN401 whatever the file says
    path.write_text(text)
    return read_settings(path, Anything).value


@pytest.mark.parametrize(
    ("scalar", "expected"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("FALSE", False),
        ("-12", -12),
        ("010", 10),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e-3", 0.001),
        ("-.5E+2", -50.0),
        ("1e", "1e"),
        ("yes", "yes"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("<<", "<<"),
        ("=", "="),
        (".", "."),
        ("-", [None]),
        ("9" * 19, "9" * 19),
        ("9" * 10_000, "9" * 10_000),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'null'", "null"),
        ("|\n  1\n", "1\n"),
    ],
)
def test_scalars_read_as_they_look(path: Path, scalar: str, expected: object) -> None:
    value = value_of(path, f"value: {scalar}" if scalar != "-" else "value:\n-\n")
    assert value == expected
    assert type(value) is type(expected)


# The characters of a line's end are YAML's own business, and JSON does not escape all of them.
JSON_TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(-1e9, 1e9) | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(JSON_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_reads_as_json(path: Path, value: object) -> None:
    assert value_of(path, json.dumps({"value": value})) == value
