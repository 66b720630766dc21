"""deploy/access.schema.json: it is fresh, and refuses nothing that the loader takes."""

import copy
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from guardwire_server.access.access_file import AccessFile, main, schema
from guardwire_server.access.new_key import print_new_key
from guardwire_server.core.errors import StartupError
from guardwire_server.settings_file import read_mapping
from tests.access.access_file import AccessFile as WrittenFile
from tests.access.access_file import digest, key_entry
from tests.access.issuer import Issuer
from tests.access.test_documentation import EXAMPLES, GUIDE
from tests.access.test_load import CASES, GOOD

SCHEMA = Path(__file__).parents[2] / "deploy" / "access.schema.json"
VALIDATOR = Draft202012Validator(schema())

Place = tuple[str | int, ...]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where to write an access file; its issuer's key set is there."""
    Issuer("ES256").write_key_set(tmp_path / "keys.json")
    return tmp_path / "access.yaml"


def is_valid(path: Path, text: str) -> bool:
    """Whether a text is a file by the schema; what cannot be read as plain values is none by any."""
    path.write_text(text)
    try:
        content = read_mapping(path)
    except StartupError:
        return False
    return bool(VALIDATOR.is_valid(content))


def mistakes(content: object) -> list[str]:
    """What the loader's model says about a file of this content; nothing if it takes it."""
    try:
        AccessFile.model_validate(content)
    except ValidationError as error:
        return [mistake["msg"] for mistake in error.errors()]
    return []


def test_the_schema_in_deploy_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schema"]) == 0
    command = "python -m guardwire_server.access.access_file --schema > deploy/access.schema.json"
    assert capsys.readouterr().out == SCHEMA.read_text(), f"make it anew: {command}"
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("text", [*EXAMPLES, GOOD])
def test_the_documents_examples_keep_to_it(path: Path, text: str) -> None:
    assert is_valid(path, text)


def test_the_tests_files_keep_to_it(path: Path) -> None:
    certificates = [{"tenant": "beta", "uri": "spiffe://beta.test"}, {"tenant": "beta", "common_name": "beta"}]
    file = WrittenFile(path, certificates=certificates, jwt=Issuer("ES256").rules())
    file.load()
    assert is_valid(path, path.read_text())


def test_the_entry_of_a_new_key_keeps_to_it(path: Path) -> None:
    output = io.StringIO()
    print_new_key("acme", "acme-1", output)
    entry = output.getvalue().partition("Below `keys` in the access file:\n\n")[2]
    assert is_valid(path, f"version: 1\ntenants: {{acme: }}\nkeys:\n{entry}")


UNSEEN = {
    "unknown tenant of a key",
    "unknown tenant of a certificate",
    "key's name twice",
    "key twice",
    "certificate twice",
}
"""The loader's cases of what is wrong with two places together, which no schema can see."""


@pytest.mark.parametrize("case", CASES)
def test_it_refuses_the_loaders_mistakes(path: Path, case: str) -> None:
    written, instead, _ = CASES[case]
    assert is_valid(path, GOOD.replace(written, instead, 1)) == (case in UNSEEN)


def test_nobody_could_be_let_in() -> None:
    nobody = {"version": 1, "tenants": {"acme": None}, "keys": [], "certificates": [], "jwt": None}
    assert not VALIDATOR.is_valid(nobody)
    assert mistakes(nobody) == ["keys, certificates, jwt: at least one is needed, or nobody is let in"]


# --- whatever stands somewhere ---------------------------------------------------------------------------------------

FULL: dict[str, Any] = {
    "version": 1,
    "tenants": {
        "acme": {
            "max_streams": 100,
            "max_classify_calls": 20,
            "tokens_per_s": 5000,
            "burst_tokens": 20000,
            "max_message_bytes": 4096,
            "max_tokens_per_message": 64,
        },
        "beta": None,
    },
    "keys": [key_entry("acme-1", "acme", "gw_one", "2126-12-31T23:59:59+02:00"), key_entry("beta-1", "beta", "gw_two")],
    "certificates": [{"tenant": "acme", "dns": "acme.test"}, {"tenant": "beta", "uri": "spiffe://beta.test"}],
    "jwt": {
        "jwks_file": "keys.json",
        "issuer": "https://issuer.test",
        "audience": "guardwire",
        "tenant_claim": "tenant",
        "algorithms": ["ES256"],
        "leeway_s": 30,
    },
}
"""A file that says everything that one can say."""

VALUES: tuple[object, ...] = (
    *(None, True, False, 0, 1, 2, -1, 5.0, 1.5, 300, 300.5, 2**31 - 1, 2**31, 1e9, 2e9, 10**17, 4_102_444_800),
    *("", "x", "acme", "beta", "a b", "-a", "a" * 63, "a" * 64, "ä" * 1024, "x" * 1025, "1", "keys.json"),
    *(digest("other"), digest("other").upper(), "gw_one", "ES256", "RS512", "HS256", "none", "4102444800"),
    *("2126-12-31", "2126-12-31T23:59:59", "2126-12-31T23:59:59Z", "2126-12-31t23:59:59.5z", "2126-02-30T00:00:00Z"),
    *("2126-12-31 23:59:59Z", "2126-12-31T23:59Z", "2126-12-31T23:59:59+0200"),
    *([], {}, [None], ["ES256"], ["ES256", "ES256"], [{}], {"acme": None}, {"beta": {}}, {"tokens_per_s": 5}),
    *({"tokens_per_s": 5, "burst_tokens": None}, {"tokens_per_s": None, "burst_tokens": 5}),
    *({"tokens_per_s": None, "burst_tokens": None}, {"tokens_per_s": 0.5, "burst_tokens": 5}),
)

UNSAYABLE = re.compile(
    "there is no tenant |the same as in |Input should be a valid integer$"
    "|Input should be a valid datetime or date, day value is outside expected range$"
)
"""What the docstring of `schema` says that the loader alone refuses, but for the key set."""


def dotted(place: Place) -> str:
    return ".".join(map(str, place))


def places(content: object, place: Place = ()) -> Iterator[tuple[Place, object]]:
    """Every place of a content, and what stands there."""
    yield place, content
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield from places(value, (*place, key))


def changed(place: Place, value: object) -> dict[str, Any]:
    """The full file with a value at a place."""
    content: Any = copy.deepcopy(FULL)
    inner = content
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    return content  # type: ignore[no-any-return]


def lacking(place: Place) -> dict[str, Any]:
    """The full file without what stands at a place."""
    content = changed(place, None)
    inner: Any = content
    for part in place[:-1]:
        inner = inner[part]
    del inner[place[-1]]
    return content


def agree(content: dict[str, Any]) -> bool:
    """Checks that what the schema refuses the model refuses, and that it refuses no more than a schema cannot say.

    Returns:
        Whether the model took it.
    """
    told = mistakes(content)
    if VALIDATOR.is_valid(content):
        assert all(map(UNSAYABLE.match, told)), (told, content)
    else:
        assert told, content
    return not told


@pytest.mark.parametrize("place", [place for place, _ in places(FULL) if place], ids=dotted)
def test_any_value_at_any_place(place: Place) -> None:
    assert not mistakes(FULL)
    taken = [agree(changed(place, value)) for value in VALUES]
    assert not all(taken)
    agree(lacking(place))


MAPPINGS = [place for place, content in places(FULL) if isinstance(content, dict) and place != ("tenants",)]


@pytest.mark.parametrize("place", MAPPINGS, ids=dotted)
def test_a_key_that_nobody_knows(place: Place) -> None:
    assert not agree(changed((*place, "other"), 1))


UNWRITTEN = [4_102_444_800, 1.5, "4102444800", "2126-12-31 23:59:59Z", "2126-12-31T23:59Z", "2126-12-31T23:59:59+0200"]


@pytest.mark.parametrize("moment", UNWRITTEN)
def test_a_moment_is_written_in_one_way(moment: object) -> None:
    told = "Value error, must be written as 2030-01-31T12:00:00Z or 2030-01-31T12:00:00+01:00"
    assert mistakes(changed(("keys", 0, "expires"), moment)) == [told]


def test_the_version_is_a_number() -> None:
    assert mistakes(changed(("version",), True)) == ["Value error, must be 1"]


def test_the_document_names_every_key() -> None:
    for part in (schema(), *schema()["$defs"].values()):
        for key in part["properties"]:
            assert re.search(rf"^ *(- )?{key}:|`{key}`", GUIDE, re.MULTILINE), key
