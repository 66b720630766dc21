"""Settings files: what is read, and how every mistake is told, with its line and key."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from guardwire_server.core.errors import StartupError
from guardwire_server.settings_file import MAX_MISTAKES_TOLD, read_settings
from guardwire_server.strict_yaml import MAX_DEPTH, MAX_FILE_BYTES


class Bread(BaseModel):
    model_config = ConfigDict(extra="forbid")

    flour: Literal["rye", "wheat"] = "rye"
    weight_kg: float = Field(default=1.0, gt=0, le=5, strict=True)
    note: str = ""
    is_sliced: bool = Field(default=False, strict=True)

    @field_validator("note")
    @classmethod
    def _check_note(cls, note: str) -> str:
        if "!" in note:
            raise ValueError("must not shout")
        return note


class Oven(BaseModel):
    model_config = ConfigDict(extra="forbid")

    watts: int
    shelves: list[Bread] = []


class Bakery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    breads: dict[Annotated[str, Field(pattern="^[a-z]+$")], Bread]
    oven: Oven | None = None
    hours: tuple[str, ...] = ()


PREFIX = "version: 1\nbreads:\n"
"""What a file begins with, unless a test says otherwise: two good lines."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bakery.yaml"


def mistakes(path: Path, content: str | bytes, model: type[BaseModel] = Bakery) -> list[str]:
    """The lines that a file's mistakes are told in, each without the path, which all begin with."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(StartupError) as raised:
        read_settings(path, model)
    lines = raised.value.message.split("\n")
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:") for line in lines]


def test_a_good_file(path: Path) -> None:
    path.write_text(
        "# the bakery\nversion: 1\nbreads:\n  plain: {}\n  dark:\n    flour: wheat\n    weight_kg: 2\n"
        "    is_sliced: true\noven: {watts: 3000, shelves: [{note: 'top'}]}\nhours: [12:30, no, 2026-01-01]\n"
    )
    bakery = read_settings(path, Bakery)
    assert bakery.breads == {"plain": Bread(), "dark": Bread(flour="wheat", weight_kg=2.0, is_sliced=True)}
    assert bakery.oven == Oven(watts=3000, shelves=[Bread(note="top")])
    assert bakery.hours == ("12:30", "no", "2026-01-01")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        # one mistake about a key or a value
        ("  rye:\n    flour: oats\n", "4: breads.rye.flour: must be 'rye' or 'wheat'"),
        ("  rye:\n    weight_kg:\n      9\n", "5: breads.rye.weight_kg: must be less than or equal to 5"),
        ("  rye:\n    weight_kg: heavy\n", "4: breads.rye.weight_kg: must be a valid number"),
        ("  rye:\n    is_sliced: yes\n", "4: breads.rye.is_sliced: must be a valid boolean"),
        ("  rye:\n    note: a!\n", "4: breads.rye.note: must not shout"),
        ("  rye:\n    flour:\n", "4: breads.rye.flour: must be 'rye' or 'wheat'"),
        (
            "  rye:\n    note: 12\n",
            "4: breads.rye.note: must be text; a number, true, false or null is text in quotes",
        ),
        ("  rye:\n    flor: rye\n", "4: breads.rye.flor: there is no such key; did you mean flour?"),
        (
            "  rye:\n    zzz: 1\n",
            "4: breads.rye.zzz: there is no such key; there are flour, weight_kg, note, is_sliced",
        ),
        ("  rye:\n    <<: {flour: rye}\n", '4: breads.rye."<<": there is no such key; there are'),
        ("  rye:\n  - flour\n", "3: breads.rye: must be a mapping"),
        ("  rye:\n", "3: breads.rye: must be a mapping"),
        ("  {}\noven:\n  shelves: []\n", "4: oven.watts: is missing"),
        ("  {}\noven:\n  wats: 1\n  watts: 2\n", "5: oven.wats: there is no such key; did you mean watts?"),
        ("  {}\noven:\n  watts: 2\n  shelves: rye\n", "6: oven.shelves: must be a list"),
        (
            "  {}\noven:\n  watts: 2\n  shelves:\n  - flour: rye\n  - flor: rye\n",
            "8: oven.shelves.1.flor: there is no such key; did you mean flour?",
        ),
        ("  {}\nhours: [a,\n  1]\n", "5: hours.1: must be text; a number, true, false or null is text in quotes"),
        ("  Rye: {}\n", "3: breads.Rye: must match pattern '^[a-z]+$'"),
        # about the form
        ("  rye: {}\n  rye: {}\n", "4: breads.rye: is there twice, first in line 3"),
        ("  1: {}\n", "3: breads.1: keys must be text; put it in quotes"),
        ("  null: {}\n", "3: breads.null: keys must be text; put it in quotes"),
        ("  true: {}\n", "3: breads.true: keys must be text; put it in quotes"),
        ("  ? [a]\n  : {}\n", '3: breads."?": keys must be text; put it in quotes'),
        ("  rye: &r {}\n", "3: breads.rye: anchors are not allowed"),
        ("  rye:\n    flour: &f rye\n", "4: breads.rye.flour: anchors are not allowed"),
        ("  rye: *r\n", "3: breads.rye: aliases are not allowed: write the value out"),
        ("  rye:\n    note: !!str 12\n", "4: breads.rye.note: tags are not allowed"),
        ("  rye: !!python/object:os.system {}\n", "3: breads.rye: tags are not allowed"),
        ("  &k rye: {}\n", "3: breads.rye: anchors are not allowed"),
        ("  {}\nhours: [*h]\n", "4: hours.0: aliases are not allowed: write the value out"),
        ("  {}\n---\nversion: 1\n", "4: a second document begins here, only one is allowed"),
        (f"  rye: {'[' * MAX_DEPTH}", f"3: mappings and lists more than {MAX_DEPTH} levels deep"),
        ("  rye: {\n", "4: not YAML: expected the node content, but found '<stream end>'"),
        ("  rye: 'a\n\n", "5: not YAML: found unexpected end of stream while scanning a quoted scalar from line 3 on"),
        ("\trye: {}\n", "3: not YAML: found character '\\t' that cannot start any token"),
        ('  rye: {note: "\\UFFFFFFFF"}\n', "3: a character that does not exist"),
        ("  rye: {note: \x07}\n", "3: a character that YAML does not allow: U+0007"),
        ("  \x1b: {}\n", "3: a character that YAML does not allow: U+001B"),
    ],
)
def test_one_mistake(path: Path, content: str, told: str) -> None:
    (mistake,) = mistakes(path, PREFIX + content)
    assert mistake.startswith(told)
    assert mistake == told or told.endswith("there are")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "1: the file is empty"),
        (b"# nothing\n\n", "1: the file is empty"),
        (b"- version: 1\n", "1: the file must be a mapping of keys to values"),
        (b"# a\n\nversion\n", "3: the file must be a mapping of keys to values"),
        (b"version: 1\n# gr\xfc\xdfe\n", "2: not UTF-8"),
        (b"version: 1\nnote: \x00\n", "2: a character that YAML does not allow: U+0000"),
        (b"#" * (MAX_FILE_BYTES + 1), f" the file is too large, the limit is {MAX_FILE_BYTES} bytes"),
    ],
)
def test_a_file_of_which_nothing_can_be_made(path: Path, content: bytes, told: str) -> None:
    assert mistakes(path, content) == [told]


def test_the_largest_file_is_read(path: Path) -> None:
    content = b"version: 1\nbreads: {}\n#"
    path.write_bytes(content + b"#" * (MAX_FILE_BYTES - len(content)))
    assert read_settings(path, Bakery).breads == {}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(StartupError) as raised:
            read_settings(path, Bakery)
        assert raised.value.message == f"{path}: cannot be read: {reason}"


def test_a_byte_order_mark_and_windows_lines_are_no_mistake(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfversion: 1\r\nbreads:\r\n  rye: {}\r\n")
    assert read_settings(path, Bakery).breads == {"rye": Bread()}
    assert mistakes(path, b"\xef\xbb\xbfversion: 1\r\nbreads:\r\n  rye: {flor: rye}\r\n") == [
        "3: breads.rye.flor: there is no such key; did you mean flour?"
    ]


def test_all_mistakes_of_a_file_are_told_by_line(path: Path) -> None:
    content = (
        "verson: 1\nbreads:\n  rye:\n    weight_kg: 0\n    note: &n a!\n  rye: {}\n  2: {}\noven:\n  shelves:\n"
        "  - flour: oats\n    nots: 1\nhours: *n\n"
    )
    assert mistakes(path, content) == [
        "1: version: is missing",
        "1: verson: there is no such key; did you mean version?",
        "4: breads.rye.weight_kg: must be greater than 0",
        "5: breads.rye.note: anchors are not allowed",
        "6: breads.rye: is there twice, first in line 3",
        "7: breads.2: keys must be text; put it in quotes",
        "8: oven.watts: is missing",
        "10: oven.shelves.0.flour: must be 'rye' or 'wheat'",
        "11: oven.shelves.0.nots: there is no such key; did you mean note?",
        "12: hours: aliases are not allowed: write the value out",
    ]


def test_nothing_more_is_said_about_what_was_refused(path: Path) -> None:
    assert mistakes(path, "version: 1\nbreads: *all\noven: {watts: *w, shelves: [!!int x]}\n") == [
        "2: breads: aliases are not allowed: write the value out",
        "3: oven.watts: aliases are not allowed: write the value out",
        "3: oven.shelves.0: tags are not allowed",
    ]


def test_mistakes_beyond_a_hundred_are_only_mentioned(path: Path) -> None:
    lines = mistakes(path, PREFIX + "".join(f"  a{'b' * index}: 1\n" for index in range(300)))
    assert lines[0] == "3: breads.a: must be a mapping"
    assert len(lines) == MAX_MISTAKES_TOLD + 1
    assert lines[-1] == f" there are more mistakes than these {MAX_MISTAKES_TOLD}"


def test_keys_of_any_kind_stay_in_their_line(path: Path) -> None:
    (line,) = mistakes(path, '{version: 1, breads: {"a\\nb": {}}}')
    assert line.startswith('1: breads."a\\nb": must match pattern')
    (line,) = mistakes(path, f"{{version: 1, breads: {{{'A' * 999}: {{}}}}}}")
    assert line.startswith(f"1: breads.{'A' * 64}…: must match pattern")


def test_an_exponential_file_is_refused_at_once(path: Path) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 30))
    assert len(mistakes(path, bomb)) == MAX_MISTAKES_TOLD + 1


FILES = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet="ab1: -[]{}&*!?|>'\"#%@`~<=,\n\t\\\ufeff\x85é", max_size=60).map(str.encode),
    st.lists(st.sampled_from([*PREFIX.split("\n"), "  rye:", "    flour: rye", "? ", "- ", "[", "}", "&a ", "*a"]))
    .map("\n".join)
    .map(str.encode),
)


@given(FILES)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_does_anything_but_be_read_or_be_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        read_settings(path, Bakery)
    except StartupError as error:
        assert all(line.startswith(f"{path}:") for line in error.message.split("\n"))  # noqa: PT017 or none is raised
