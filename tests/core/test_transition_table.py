"""The picture of the stream's states in the documentation is the table that the code runs."""

from pathlib import Path

from guardwire_server.core.transitions import transition_table

README = Path(__file__).parents[2] / "server" / "README.md"


def test_documentation_holds_the_table() -> None:
    text = README.read_text()
    between = text.partition("<!-- transitions -->")[2].partition("<!-- /transitions -->")[0].strip()
    assert between == transition_table()
