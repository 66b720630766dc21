"""The `guardwire` command: what it accepts, and how it ends."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from guardwire import cli_classify, cli_info, cli_load, cli_moderate
from guardwire.cli_connection import add_connection_arguments, connect, description
from guardwire.cli_input import InputError, UsageError
from guardwire.cli_output import Screen
from guardwire.client import Client
from guardwire.errors import GuardwireError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_EPILOG = """\
exit codes:
  0  allowed, or flagged only; also a BLOCK that is only observed
  1  an error, or the text was not judged: nothing can be said about it
  2  the command line is wrong
  3  the policy decided BLOCK, and enforces it
"""

_Command = Callable[[Client, argparse.Namespace, Screen], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code.

    Args:
        argv: The arguments; None: those of the process.
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    command: _Command = arguments.command
    try:
        with connect(arguments) as client:
            return command(client, arguments, Screen(sys.stdout))
    except UsageError as error:
        return _fail(str(error), EXIT_USAGE)
    except InputError as error:
        return _fail(str(error))
    except GuardwireError as error:
        return _fail(f"{arguments.target}: {description(error, arguments)}")
    except BrokenPipeError:  # whoever read the output has gone; the interpreter must not try to flush it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="guardwire",
        description="Asks a Guardwire server what it makes of a text.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"guardwire {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (cli_classify, cli_moderate, cli_info, cli_load):
        command = module.add_arguments(commands)
        command.epilog = command.epilog or _EPILOG
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.allow_abbrev = False  # `--api-key KEY` must not pass for --api-key-file
        add_connection_arguments(command)
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def _version() -> str:
    try:
        return metadata.version("guardwire")
    except metadata.PackageNotFoundError:
        return "of unknown version: it is not installed"


def _fail(message: str, code: int = EXIT_ERROR) -> int:
    print(f"guardwire: error: {' '.join(message.split())}", file=sys.stderr)
    return code
