"""How settings are refused."""

from typing import Any

import pytest

from guardwire_server.config import load_config
from guardwire_server.core.errors import StartupError


def refusal(flags: dict[str, Any], environment: dict[str, str]) -> str:
    """The message that a start with these settings ends with."""
    with pytest.raises(StartupError) as raised:
        load_config(flags, environment)
    return raised.value.message
