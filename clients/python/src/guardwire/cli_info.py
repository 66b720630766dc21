"""`guardwire info`: tells what a server is."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from guardwire.cli_output import Screen, words
from guardwire.client import Client
from guardwire.server_info import Limits, Load, ModelInfo, PolicyInfo, ServerInfo

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_arguments(commands: _SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command."""
    summary = "tell a server's models, policies, limits and load"
    parser = commands.add_parser("info", help=summary, description=f"{summary.capitalize()}.")
    parser.set_defaults(command=info)
    return parser


def info(client: Client, arguments: argparse.Namespace, screen: Screen) -> int:
    """Runs the command; gives its exit code."""
    result = client.server_info()
    if arguments.json:
        screen.json(result, indent=2)
    else:
        _show(result, screen)
    return 0


def _show(result: ServerInfo, screen: Screen) -> None:
    screen.line(f"server   {result.version}")
    for model in result.models:
        screen.line(f"model    {_model(model)}")
    for policy in result.policies:
        screen.line(f"policy   {_policy(policy)}")
    if result.policies_version:
        screen.line(f"policies version {result.policies_version}")
    screen.line(f"limits   {_fields(result.limits)}")
    screen.line(f"load     {_fields(result.load)}")


def _model(model: ModelInfo) -> str:
    demo = ", for trying out only" if model.demo else ""
    return (
        f"{model.name} ({words(model.kind, 'unknown kind')}, revision {model.revision}, "
        f"{model.dtype} on {model.device}, {model.max_context_tokens} tokens of context{demo})"
    )


def _policy(policy: PolicyInfo) -> str:
    about = f": {policy.description}" if policy.description else ""
    observe = ", observes only" if policy.observe_only else ""
    return f"{policy.name} ({words(policy.strictness)}, debounce {words(policy.debounce)}{observe}){about}"


def _fields(values: Limits | Load) -> str:
    return ", ".join(f"{field.name} {getattr(values, field.name):g}" for field in dataclasses.fields(values))
