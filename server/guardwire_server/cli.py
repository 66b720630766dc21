"""The command line of `guardwire-server`."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence

from guardwire_server import __version__
from guardwire_server.config import add_flags, load_config, prepare_process
from guardwire_server.core.errors import StartupError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 in good order, 1 if it could not start, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    prepare_process()
    log_format = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=options.log_level, format=log_format)
    try:
        return int(options.run(options))
    except StartupError as error:
        print(f"guardwire-server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="guardwire-server",
        description="A gRPC moderation server for text that a language model is writing.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"guardwire-server {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve until SIGTERM",
        description="Serves until SIGTERM. Flags are also keys of the --config file and variables GUARDWIRE_<KEY>.",
        allow_abbrev=False,  # a misspelt setting is an error, not another setting
    )
    add_flags(serve)
    serve.set_defaults(run=_serve, log_level=logging.INFO)
    demo = commands.add_parser("demo", help="show what it does, with the demo checkpoints")
    demo.set_defaults(run=_demo, log_level=logging.ERROR)
    check = commands.add_parser("check-model", help="say what a checkpoint is, load it, judge two examples")
    check.add_argument("path", metavar="PATH", help="a directory or a hub name")
    check.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    check.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    check.set_defaults(run=_check_model, log_level=logging.WARNING)
    return parser


def _serve(options: argparse.Namespace) -> int:
    config = load_config(vars(options))
    from guardwire_server.loading_display import loading_display
    from guardwire_server.serving import serve  # torch is slow to import: not before the configuration is right

    with loading_display() as on_progress:
        asyncio.run(serve(config, on_progress))
    return 0


def _demo(_: argparse.Namespace) -> int:
    from guardwire_server.demo.show import show

    return asyncio.run(show())


def _check_model(options: argparse.Namespace) -> int:
    from guardwire_server.check_model import check_model

    return check_model(options.path, device=options.device, dtype=options.dtype)
