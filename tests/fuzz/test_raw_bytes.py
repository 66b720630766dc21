"""Raw bytes, led by coverage, for a short time; FUZZ_SECONDS says for longer."""

import base64
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.effort import seconds
from tests.fuzz.raw_bytes import START_SECONDS, TARGETS
from tests.tools import skip_without

ROOT = Path(__file__).parents[2]
TIMEOUT_S = seconds() + START_SECONDS


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("target", TARGETS)
def test_raw_bytes(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        skip_without("the Python package atheris")
    command = [sys.executable, "-m", "tests.fuzz.raw_bytes", "--target", target, "--artifacts", str(tmp_path)]
    run = subprocess.run(
        [*command, "--seconds", str(seconds())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    inputs = [base64.b64encode(path.read_bytes()).decode() for path in tmp_path.glob(f"{target}-*")]
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}\nthe input, in base64: {inputs}"
    assert re.search(rf"^{target}: [1-9]\d* inputs$", run.stdout, re.MULTILINE), run.stdout
