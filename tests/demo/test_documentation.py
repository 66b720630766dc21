"""What the READMEs tell a newcomer to run does what they say, against a server with the demo checkpoints."""

import re
import sys
from pathlib import Path

import pytest

from guardwire_server.config import ServerConfig
from guardwire_server.core.policy import BUILT_IN_POLICIES
from tests.demo.conftest import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CLIENT_README = (ROOT / "clients" / "python" / "README.md").read_text()
EXAMPLES = ROOT / "clients" / "python" / "examples"
GUARDWIRE = (sys.executable, "-m", "guardwire")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_python_of_the_readme(demo_server: str) -> None:
    (code,) = blocks(README, "python")
    printed = run(sys.executable, "-c", code.replace("localhost:50051", demo_server))
    assert printed.startswith("RiskLevel.UNSAFE")
    assert "Summary(" in printed


@pytest.mark.parametrize("code", [code for code in blocks(CLIENT_README, "python") if "localhost:50051" in code])
def test_python_of_the_client_readme(demo_server: str, code: str) -> None:
    assert run(sys.executable, "-c", code.replace("localhost:50051", demo_server))


def test_shell_of_the_readme(demo_server: str) -> None:
    commands = re.findall(r"^\.venv/bin/guardwire (\w+)(?: --prompt \"([^\"]*)\")?(?: \"([^\"]*)\")?$", README, re.M)
    assert [command for command, _, _ in commands] == ["classify", "moderate", "info"]
    (_, _, question), (_, prompt, answer), _ = commands
    classified = run(*GUARDWIRE, "classify", "--target", demo_server, question)
    assert "unsafe" in classified.lower()
    moderated = run(*GUARDWIRE, "moderate", "--target", demo_server, "--prompt", prompt, answer)
    assert "safe" in moderated.lower()
    assert "for trying" in run(*GUARDWIRE, "info", "--target", demo_server)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples(demo_server: str, example: Path) -> None:
    printed = run(sys.executable, str(example), demo_server)
    signs = {"moderate_stream.py": "[cut: ", "traced_answer.py": "guardwire.action=block"}
    assert signs.get(example.name, "SAFE") in printed


def test_policies_of_the_readme_exist() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:flags|blocks) ", README, re.M)
    assert rows == [policy.name for policy in BUILT_IN_POLICIES]


def test_limits_of_the_readme_are_the_defaults() -> None:
    defaults = {key: field.default for key, field in ServerConfig.model_fields.items()}
    for key, words in {
        "max_sessions": "1,024 open streams",
        "max_classify_calls": "256 waiting Classify calls",
        "max_tokens_per_message": "4,096 token ids",
    }.items():
        assert words in README.replace("\n", " ")
        assert f"{defaults[key]:,}" == words.split()[0]
    assert (defaults["max_message_bytes"], defaults["idle_timeout_s"], defaults["max_lifetime_s"]) == (65536, 300, 3600)
    assert defaults["write_timeout_s"] == 30
