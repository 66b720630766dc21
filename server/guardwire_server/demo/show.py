"""`guardwire-server demo`: a server with the demo checkpoints, and everything it does, seen through the client."""

import asyncio
import time
from dataclasses import dataclass

from rich.console import Console
from tokenizers import Tokenizer

from guardwire import (
    Action,
    AsyncClient,
    AsyncModerateStream,
    Classification,
    Decision,
    PromptVerdict,
    RiskLevel,
    Summary,
    TokenVerdicts,
)
from guardwire_server.app import local_server
from guardwire_server.config import ServerConfig
from guardwire_server.demo.conversations_shown import ANSWERS, CONCURRENT_ANSWERS, CONVERSATIONS, ShownAnswer

STYLES = {RiskLevel.SAFE: "green", RiskLevel.CONTROVERSIAL: "yellow", RiskLevel.UNSAFE: "bold red", None: ""}


@dataclass(slots=True)
class Totals:
    """What the concurrent part measured."""

    num_tokens: int = 0
    num_blocked: int = 0


async def show() -> int:
    """Runs the demo; returns the exit status 0, or raises."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print("Starting a server with the two demo checkpoints (small models, for trying things out) ...")
    config = ServerConfig(listen="127.0.0.1:0", drain_delay_s=0.0, grace_s=1.0)
    async with local_server(config) as address, AsyncClient(address) as client:
        info = await client.server_info()
        console.print(f"Guardwire {info.version} serves {', '.join(model.name for model in info.models)} on {address}.")
        await _show_classify(console, client)
        tokenizer = Tokenizer.from_str((await client.tokenizer_json()).decode())
        for answer in ANSWERS:
            await _show_stream(console, client, tokenizer, answer)
        await _show_concurrency(console, client, tokenizer)
    console.print("\nDone. `make serve` keeps a server running; README.md says how to point it at the real models.")
    return 0


async def _show_classify(console: Console, client: AsyncClient) -> None:
    console.print("\nClassify: finished conversations, judged by the generative model", style="bold")
    for messages in CONVERSATIONS:
        result = await client.classify(messages)
        for role, content in messages:
            console.print(f"  {role:>9}: {content}")
        console.print(f"             {_describe(result)}", style=STYLES[result.risk_level])


def _describe(result: Classification) -> str:
    if not result.judged or result.risk_level is None:
        return f"not judged -> {result.action.name} ({result.explanation})"
    categories = ", ".join(category.name for category in result.categories) or "no category"
    refusal = f", refusal: {result.refusal.name.lower()}" if result.refusal else ""
    chances = ""
    if result.probabilities:
        p = result.probabilities
        chances = f"; safe {p.safe:.2f}, controversial {p.controversial:.2f}, unsafe {p.unsafe:.2f}"
    return f"{result.risk_level.name} ({categories}{refusal}{chances}) -> {result.action.name}"


async def _show_stream(console: Console, client: AsyncClient, tokenizer: Tokenizer, answer: ShownAnswer) -> None:
    """Pushes an answer token by token, as a language model would, and prints each token as it is judged."""
    console.print(f"\nModerateStream: {answer.title}", style="bold")
    console.print(f"       user: {answer.prompt}")
    ids = tokenizer.encode(answer.text, add_special_tokens=False).ids
    async with client.moderate([("user", answer.prompt)], end_on_block=True) as stream:
        pushing = asyncio.create_task(_push_one_by_one(stream, ids))
        decision = None
        level: RiskLevel | None = None
        async for update in stream:
            if isinstance(update, PromptVerdict) and update.risk_level:
                category = f" ({update.category.name})" if update.category else ""
                console.print(f"     prompt: {update.risk_level.name}{category}", style=STYLES[update.risk_level])
                console.print("  assistant: ", end="")
            elif isinstance(update, TokenVerdicts):
                level = _print_tokens(console, tokenizer, ids, update, level)
            elif isinstance(update, Decision) and update.action is Action.BLOCK:
                decision = update
            elif isinstance(update, Summary):
                _print_outcome(console, tokenizer, ids, decision, update)
        await pushing


async def _push_one_by_one(stream: AsyncModerateStream, ids: list[int]) -> None:
    for token_id in ids:
        if stream.blocked:
            return
        await stream.push([token_id])
        await asyncio.sleep(0.01)  # a language model that writes 100 tokens a second
    await stream.finish()


def _print_tokens(
    console: Console, tokenizer: Tokenizer, ids: list[int], verdicts: TokenVerdicts, level: RiskLevel | None
) -> RiskLevel | None:
    """Prints tokens in the colour of their risk; says in words where it changes. Returns the last token's level."""
    for verdict in verdicts:
        if verdict.risk_level is not level and not (level is None and verdict.risk_level is RiskLevel.SAFE):
            category = f": {verdict.category.name}" if verdict.category else ""
            name = verdict.risk_level.name if verdict.risk_level else "NOT JUDGED"
            console.print(f"[{name}{category}]", style=STYLES[verdict.risk_level], end="")
        level = verdict.risk_level
        console.print(tokenizer.decode([ids[verdict.index]]), style=STYLES[level], end="")
    return level


def _print_outcome(
    console: Console, tokenizer: Tokenizer, ids: list[int], decision: Decision | None, summary: Summary
) -> None:
    console.print()
    if decision is None:
        action = summary.action.name if summary.action else "no action"
        console.print(f"  -> {summary.num_tokens} tokens judged, nothing to cut (highest action: {action})")
        return
    kept = tokenizer.decode(ids[: decision.cut_index])
    console.print(f"  -> BLOCK at token {decision.token_index}: {decision.explanation}", style="bold red")
    console.print(f"  -> kept: {kept!r}")


async def _show_concurrency(console: Console, client: AsyncClient, tokenizer: Tokenizer) -> None:
    """Streams all answers at once, each waiting for every token's verdict, and tells how they were batched."""
    prompts = list(CONCURRENT_ANSWERS)
    console.print(f"\nModerateStream: {len(prompts)} conversations at once, one token at a time", style="bold")
    before = (await client.server_info()).load
    started_s = time.monotonic()
    totals = Totals()
    async with asyncio.TaskGroup() as tasks:
        for prompt, text in prompts:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            tasks.create_task(_run_in_step(client, prompt, ids, totals))
    duration_s = time.monotonic() - started_s
    after = (await client.server_info()).load
    num_steps = after.num_steps - before.num_steps
    mean = (after.num_step_sequences - before.num_step_sequences) / num_steps
    console.print(
        f"  {totals.num_tokens} tokens judged in {duration_s:.2f} s ({totals.num_tokens / duration_s:.0f} tokens/s), "
        f"{totals.num_blocked} answers blocked"
    )
    console.print(f"  {num_steps} engine steps, mean batch size {mean:.1f} sequences per step")


async def _run_in_step(client: AsyncClient, prompt: str, ids: list[int], totals: Totals) -> None:
    """Pushes each token only after the verdict on the one before."""
    async with client.moderate([("user", prompt)]) as stream:
        updates = aiter(stream)
        for token_id in ids:
            await stream.push([token_id])
            while not isinstance(await anext(updates), TokenVerdicts):
                pass
        await stream.finish()
        async for _ in updates:
            pass
        totals.num_tokens += len(ids)
        totals.num_blocked += stream.blocked
