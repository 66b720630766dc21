"""Programs that some tests need and not every machine has."""

import os
from typing import NoReturn

import pytest


def skip_without(tool: str) -> NoReturn:
    """Skips the test for want of a tool; fails it where REQUIRE_ALL_TOOLS is set, as in CI."""
    if os.environ.get("REQUIRE_ALL_TOOLS"):
        pytest.fail(f"needs {tool}, and REQUIRE_ALL_TOOLS is set")
    pytest.skip(f"needs {tool}")
