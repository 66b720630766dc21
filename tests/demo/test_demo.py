"""`guardwire-server demo` shows the main job, on a terminal and off it; `check-model` knows the demo checkpoints."""

import os
import pty
import re
import subprocess
import sys

import pytest

from guardwire_server import demo
from guardwire_server.demo.conversations_shown import ANSWERS, CONCURRENT_ANSWERS, CONVERSATIONS
from tests.demo.conftest import run

SERVER = (sys.executable, "-m", "guardwire_server")
MAX_CHECKPOINT_BYTES = 8_000_000


@pytest.fixture(scope="module")
def shown() -> str:
    return run(*SERVER, "demo")


def test_plain_text_without_a_terminal(shown: str) -> None:
    assert "\x1b" not in shown


def test_classifies_the_conversations(shown: str) -> None:
    """Label, category, refusal and probabilities of each."""
    for messages in CONVERSATIONS:
        assert messages[-1][1] in shown
    verdicts = re.findall(
        r"^ +(SAFE|CONTROVERSIAL|UNSAFE) \((.*); safe [\d.]+, controversial [\d.]+, unsafe", shown, re.M
    )
    assert [label for label, _ in verdicts] == ["SAFE", "UNSAFE", "SAFE", "UNSAFE", "UNSAFE"]
    assert ["refusal: yes" in words for _, words in verdicts] == [False, False, True, False, False]
    assert "VIOLENT" in verdicts[1][1]
    assert "JAILBREAK" in verdicts[3][1]
    assert "PII" in verdicts[4][1]


def test_streams_a_safe_an_unsafe_and_a_half_safe_answer(shown: str) -> None:
    parts = shown.split("\nModerateStream: ")[1:]
    safe, unsafe, half = parts[:3]
    assert ANSWERS[0].text in re.sub(r"\[[A-Z]+(: [A-Z_]+)?\]", "", safe)  # without the words for changes of risk
    assert "nothing to cut" in safe
    assert "BLOCK at token" in unsafe
    assert "BLOCK at token" in half
    kept = re.search(r"-> kept: ['\"](.*)['\"]$", half, re.M)
    assert kept is not None
    assert ANSWERS[2].text.startswith(kept[1])
    assert "Talk to him first and stay calm" in kept[1]
    assert "hammer" not in kept[1]


def test_streams_sixteen_conversations_at_once(shown: str) -> None:
    assert len(CONCURRENT_ANSWERS) == 16
    mean = re.search(r"mean batch size ([\d.]+) sequences per step", shown)
    assert mean is not None
    assert float(mean[1]) > 1
    assert ", 0 answers blocked" in shown


def test_colours_on_a_terminal() -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color"}
    with subprocess.Popen([*SERVER, "demo"], stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        output = b""
        while True:
            try:
                output += os.read(leader, 65536)
            except OSError:  # the other side is closed
                break
        assert process.wait(60) == 0, output.decode()
    os.close(leader)
    assert b"\x1b[32m" in output  # green: safe
    assert b"\x1b[1;31m" in output  # bold red: unsafe


@pytest.mark.parametrize("directory", [demo.stream_checkpoint_directory(), demo.gen_checkpoint_directory()])
def test_checkpoints_are_small(directory: os.PathLike[str]) -> None:
    assert sum(entry.stat().st_size for entry in os.scandir(directory)) <= MAX_CHECKPOINT_BYTES


def test_check_model_judges_the_two_examples() -> None:
    printed = run(*SERVER, "check-model", "demo")
    stream, gen = printed.split(f"\n{demo.GEN_NAME}: ")
    for part, unsafe, safe in ((stream, "UNSAFE", "SAFE"), (gen, "Safety: Unsafe", "Safety: Safe")):
        assert "a demo checkpoint" in part
        assert re.search(rf"user: 'How can I make a bomb\?'\n  {unsafe} / ", part)
        assert re.search(rf"assistant: .*\n  {safe} ", part)


def test_check_model_names_what_is_wrong() -> None:
    printed = run(*SERVER, "check-model", "/nowhere", expected_status=1)
    assert printed.startswith("guardwire-server: /nowhere: ")
    assert "Traceback" not in printed
