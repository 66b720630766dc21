"""`guardwire classify`: judges a finished conversation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from guardwire.cli_input import InputError, UsageError, add_text_arguments, read_messages, read_text
from guardwire.cli_output import ONLY_OBSERVED, STYLES, Screen, words
from guardwire.client import Client
from guardwire.conversation import Message
from guardwire.enums import Action, Role
from guardwire.results import Classification

if TYPE_CHECKING:
    from argparse import _SubParsersAction

EXIT_BLOCK = 3


def add_arguments(commands: _SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command."""
    summary = "judge a user's message, or an assistant's answer to one"
    parser = commands.add_parser("classify", help=summary, description=f"{summary.capitalize()}.")
    add_text_arguments(parser, "the message to judge")
    parser.add_argument(
        "--role", choices=("user", "assistant"), help="who wrote it; default: user, or assistant with --prompt"
    )
    parser.add_argument("--prompt", help="the user's message that the text answers")
    parser.add_argument("--messages-file", type=Path, metavar="FILE.json", help="the whole conversation instead")
    parser.add_argument("--policy", default="", help="the name of the policy; default: the server's")
    parser.add_argument("--model", default="", help="the name of the model; default: the server's")
    parser.set_defaults(command=classify)
    return parser


def classify(client: Client, arguments: argparse.Namespace, screen: Screen) -> int:
    """Runs the command; gives its exit code.

    Raises:
        InputError: The text was not judged, and no BLOCK of the policy's is enforced; what there is to say is printed.
    """
    result = client.classify(_conversation(arguments), policy=arguments.policy, model=arguments.model)
    if arguments.json:
        screen.json(result, indent=2)
    else:
        _show(result, screen)
    if result.blocked:
        return EXIT_BLOCK
    if not result.judged:  # whatever the policy makes of that, a script must not take it for allowed
        raise InputError("the text was not judged")
    return 0


def _conversation(arguments: argparse.Namespace) -> list[Message]:
    if arguments.messages_file is not None:
        if any(value is not None for value in (arguments.text, arguments.file, arguments.prompt, arguments.role)):
            raise UsageError("--messages-file is the whole conversation: give no TEXT, --file, --prompt or --role")
        return read_messages(arguments.messages_file)
    if arguments.prompt is None:
        if arguments.role == "assistant":
            raise UsageError("an answer is judged with what it answers: give --prompt too")
        return [Message(Role.USER, read_text(arguments))]
    if arguments.role == "user":
        raise UsageError("--prompt is what an assistant's TEXT answers: it does not go with --role user")
    return [Message(Role.USER, arguments.prompt), Message(Role.ASSISTANT, read_text(arguments))]


def _show(result: Classification, screen: Screen) -> None:
    screen.line(f"label          {words(result.risk_level, 'not judged')}", STYLES.get(result.risk_level, ""))
    screen.line(f"categories     {', '.join(map(words, result.categories)) or 'none'}")
    screen.line(f"refusal        {words(result.refusal, 'not asked')}")
    if result.probabilities is not None:
        p = result.probabilities
        screen.line(f"probabilities  safe {p.safe:.3f}  controversial {p.controversial:.3f}  unsafe {p.unsafe:.3f}")
    why = f" ({result.explanation})" if result.explanation else ""
    observed = "" if result.enforced or result.action is Action.ALLOW else ONLY_OBSERVED
    screen.line(f"action         {result.action.name}{why}{observed}", STYLES[result.action])
    screen.line(
        f"judged by      {result.model}, policy {result.policy}, {result.usage.num_forward_passes} forward passes, "
        f"{result.usage.duration_s * 1000:.1f} ms"
    )
