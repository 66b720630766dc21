"""`guardwire moderate`: judges an answer token by token, as if a model were writing it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from guardwire.cli_classify import EXIT_BLOCK
from guardwire.cli_feed import Feed, TextFeed, TokenFeed
from guardwire.cli_input import InputError, add_text_arguments, read_messages, read_text
from guardwire.cli_output import ONLY_OBSERVED, STYLES, Screen, as_json, quoted, words
from guardwire.client import Client
from guardwire.conversation import Message
from guardwire.enums import Action, RiskLevel, Role
from guardwire.results import Decision, Draining, PromptVerdict, Summary, TokenVerdict, TokenVerdicts, Update

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_arguments(commands: _SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command."""
    summary = "judge an answer token by token"
    parser = commands.add_parser("moderate", help=summary, description=f"{summary.capitalize()}.")
    add_text_arguments(parser, "the answer")
    conversation = parser.add_mutually_exclusive_group(required=True)
    conversation.add_argument("--prompt", help="the user's message that it answers")
    conversation.add_argument(
        "--messages-file", type=Path, metavar="FILE.json", help="the conversation up to the answer"
    )
    parser.add_argument("--text", dest="as_text", action="store_true", help="push text, not token ids")
    parser.add_argument("--all", action="store_true", help="go on after a BLOCK, to the end of the answer")
    parser.add_argument("--observe-only", action="store_true", help="report decisions without enforcing them")
    parser.add_argument("--policy", default="", help="the name of the policy; default: the server's")
    parser.add_argument("--model", default="", help="the name of the model; default: the server's")
    parser.set_defaults(command=moderate)
    return parser


def moderate(client: Client, arguments: argparse.Namespace, screen: Screen) -> int:
    """Runs the command; gives its exit code.

    Raises:
        InputError: There is no answer, or not all of it was judged and no BLOCK is enforced; what came is printed.
    """
    if arguments.messages_file is not None:
        messages = read_messages(arguments.messages_file)
    else:
        messages = [Message(Role.USER, arguments.prompt)]
    answer = read_text(arguments)
    if not answer.strip():  # as the server refuses a blank message of classify
        raise InputError("there is no answer to judge: it is empty or blank")
    feed = TextFeed(answer) if arguments.as_text else _token_feed(client, answer)
    report = _JsonReport(screen, feed) if arguments.json else _Report(screen, feed)
    blocked = False
    summary: Summary | None = None
    with client.moderate(
        messages,
        input=feed.kind,
        tokenizer_fingerprint=feed.tokenizer_fingerprint,
        policy=arguments.policy,
        model=arguments.model,
        end_on_block=not arguments.all,
        observe_only=arguments.observe_only,
        timeout_s=arguments.timeout,
    ) as stream:
        feed.push(stream)
        stream.finish()
        for update in stream:
            report.show(update)
            blocked |= isinstance(update, Decision) and update.blocked
            summary = update if isinstance(update, Summary) else summary
    if blocked:
        return EXIT_BLOCK
    if summary is None or summary.risk_level is None:
        raise InputError("the answer was not judged")
    if num_not_judged := _num_not_judged(summary):
        raise InputError(f"{num_not_judged} tokens of the answer were not judged")
    return 0


def _token_feed(client: Client, answer: str) -> TokenFeed:
    try:
        return TokenFeed(answer, client.tokenizer_json())
    except ImportError:
        raise InputError(
            "to tokenise the answer here the tokenizers package is missing: "
            "install `guardwire[cli]`, or push text with --text"
        ) from None


def _num_not_judged(summary: Summary) -> int:
    num_judged = summary.num_safe_tokens + summary.num_controversial_tokens + summary.num_unsafe_tokens
    return summary.num_tokens - num_judged


class _Report:
    """Prints updates for people."""

    def __init__(self, screen: Screen, feed: Feed) -> None:
        self._screen = screen
        self._feed = feed
        self._observed: set[Action] = set()
        self._enforced: set[Action] = set()

    def show(self, update: Update) -> None:
        """Prints what there is to say about an update."""
        match update:
            case PromptVerdict():
                category = f", {words(update.category)}" if update.category else ""
                label = words(update.risk_level, "not judged")
                self._screen.line(f"prompt    {label}{category}", STYLES.get(update.risk_level, ""))
            case TokenVerdicts():
                for verdict in update:
                    self._show_token(verdict)
            case Decision():
                self._show_decision(update)
            case Draining():
                self._screen.line("draining  the server is about to stop")
            case Summary():
                self._show_summary(update)

    def _show_token(self, verdict: TokenVerdict) -> None:
        label = words(verdict.risk_level, "not judged")
        category = words(verdict.category, "scaffold" if verdict.scaffold else "")
        line = f"{verdict.index:>6}    {label:<13}  {_probability(verdict):.3f}  {category:<27}  "
        self._screen.line(line + quoted(self._feed.next_piece(verdict)), STYLES.get(verdict.risk_level, ""))

    def _show_decision(self, decision: Decision) -> None:
        whose = "prompt" if decision.role is Role.USER else f"answer at token {decision.token_index}"
        why = f": {decision.explanation}" if decision.explanation else ""
        (self._enforced if decision.enforced else self._observed).add(decision.action)
        observed = "" if decision.enforced else ONLY_OBSERVED
        self._screen.line(f"decision  {decision.action.name} the {whose}{why}{observed}", STYLES[decision.action])
        if decision.role is not Role.USER:
            self._screen.line(f"keep      {quoted(self._feed.kept(decision))}")

    def _show_summary(self, summary: Summary) -> None:
        action = summary.action.name if summary.action else "none"
        observed = ONLY_OBSERVED if summary.action in self._observed - self._enforced else ""
        num_not_judged = _num_not_judged(summary)
        not_judged = f", {num_not_judged} not judged" if num_not_judged else ""
        self._screen.line(
            f"summary   {words(summary.end_reason, 'ended')}, answer {words(summary.risk_level, 'not judged')}, "
            f"action {action}{observed}, {summary.num_tokens} tokens: {summary.num_safe_tokens} safe, "
            f"{summary.num_controversial_tokens} controversial, {summary.num_unsafe_tokens} unsafe{not_judged}, "
            f"{summary.duration_s * 1000:.1f} ms"
        )


class _JsonReport(_Report):
    """Prints updates for programs: one JSON object per line, `type` says which; verdicts come token by token."""

    def show(self, update: Update) -> None:
        """Prints an update as one line, or as one for every token."""
        match update:
            case TokenVerdicts():
                for verdict in update:
                    piece = self._feed.next_piece(verdict)
                    self._screen.json({"type": "token_verdict", "text": piece, **as_json(verdict)})
            case Decision():
                kept = None if update.role is Role.USER else self._feed.kept(update)
                self._screen.json({"type": "decision", "kept": kept, **as_json(update)})
            case _:
                kind = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(update).__name__).lstrip("_")
                self._screen.json({"type": kind, **as_json(update)})


def _probability(verdict: TokenVerdict) -> float:
    match verdict.risk_level:
        case RiskLevel.SAFE:
            return verdict.probabilities.safe
        case RiskLevel.CONTROVERSIAL:
            return verdict.probabilities.controversial
        case _:
            return verdict.probabilities.unsafe
