"""JSON schemas of the files that operators write, for editors and reviews, and the command that writes one."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a file that is read as this model."""
    return {"$schema": DIALECT, **model.model_json_schema()}


def write_schema(model: type[BaseModel], module: str, arguments: Sequence[str] | None) -> int:
    """The command of a module that reads such a file: `python -m MODULE --schema` writes the schema.

    Returns:
        The process's exit status.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", allow_abbrev=False)
    parser.add_argument("--schema", action="store_true", required=True, help="write the file's JSON schema")
    parser.parse_args(arguments)
    json.dump(schema_of(model), sys.stdout, indent=2)
    print()
    return 0
