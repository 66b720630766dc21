"""The command line of `guardwire-server`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from guardwire_server import __version__
from guardwire_server.config import add_flags, load_config, prepare_process
from guardwire_server.core.errors import StartupError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 in good order, 1 if it could not, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    prepare_process()
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
    _add_serve(commands)
    demo = commands.add_parser("demo", help="show what it does, with the demo checkpoints")
    demo.set_defaults(run=_demo)
    check = commands.add_parser("check-model", help="say what a checkpoint is, load it, judge two examples")
    check.add_argument("path", metavar="PATH", help="a directory, a hub name, or `demo` for both demo checkpoints")
    check.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    check.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    check.set_defaults(run=_check_model)
    _add_operation(commands)
    return parser


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    settings = "Flags are also keys of the --config file and variables GUARDWIRE_<KEY>."
    for name, summary, run in (
        ("serve", "serve until SIGTERM", _serve),
        ("check-config", "read the settings and all files that they name, and say what is in them", _check),
    ):
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {settings}",
            allow_abbrev=False,  # a misspelt setting is an error, not another setting
        )
        add_flags(command)
        command.set_defaults(run=run)


def _add_operation(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    health = commands.add_parser("health", help="ask a server on this machine how it is; exits 0 if it serves")
    health.add_argument(
        "--target", metavar="HOST:PORT", help="default: where a server with the environment's settings answers"
    )
    health.add_argument("--service", default="readiness", help="readiness, liveness or a service (default: readiness)")
    health.add_argument("--timeout-s", type=float, default=3.0, help="seconds to wait for the answer (default: 3)")
    health.set_defaults(run=_health)
    new_key = commands.add_parser("new-key", help="make a key for a caller and its entry for access_file")
    new_key.add_argument("--tenant", required=True, help="whose key it is")
    new_key.add_argument("--id", required=True, help="what the entry is called")
    new_key.set_defaults(run=_new_key)


def _serve(options: argparse.Namespace) -> int:
    config = load_config(vars(options))
    from guardwire_server.telemetry.logs import configure_logging

    configure_logging(config.log_format, config.log_level)
    from guardwire_server.check_config import check_before_loading

    check_before_loading(config)
    import uvloop

    from guardwire_server.loading_display import loading_display
    from guardwire_server.serving import serve  # torch is slow to import: not before all of that is right

    # grpc.aio wakes the loop twice for every message that is answered, and a round of uvloop costs less.
    with loading_display() as on_progress, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, on_progress))
    return 0


def _check(options: argparse.Namespace) -> int:
    from guardwire_server.check_config import check_config

    return check_config(vars(options))


def _demo(_: argparse.Namespace) -> int:
    _configure_text_logging("error")
    from guardwire_server.demo.show import show

    return asyncio.run(show())


def _check_model(options: argparse.Namespace) -> int:
    _configure_text_logging("warning")
    from guardwire_server import demo
    from guardwire_server.model.checkpoint_hub import local_checkpoint

    directories = demo.stream_checkpoint_directory(), demo.gen_checkpoint_directory()
    paths = [str(path) for path in directories] if options.path == "demo" else [options.path]
    for path in paths:
        local_checkpoint(path)  # a wrong name is told at once, not when torch is imported
    from guardwire_server.check_model import check_model

    for path in paths:
        check_model(path, device=options.device, dtype=options.dtype)
    return 0


def _health(options: argparse.Namespace) -> int:
    from guardwire_server.check_health import check_health, own_target

    target = options.target or own_target(load_config({}))
    return check_health(target, options.service, options.timeout_s)


def _new_key(options: argparse.Namespace) -> int:
    from guardwire_server.access.new_key import print_new_key

    print_new_key(options.tenant, options.id, sys.stdout)
    return 0


def _configure_text_logging(level: str) -> None:
    """For commands of people, whose output is not read by machines."""
    from guardwire_server.telemetry.logs import configure_logging

    configure_logging("text", level)
