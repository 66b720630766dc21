"""`guardwire-server check-model`: says what a checkpoint is, loads it, and has it judge two examples.

The examples are the ones that Qwen3Guard's model cards show, with the labels that the published checkpoints give.
"""

import asyncio

from tokenizers import Tokenizer

from guardwire import AsyncClient, ModelInfo, PromptVerdict, RiskProbabilities, Summary, TokenVerdicts
from guardwire_server.app import local_server
from guardwire_server.config import ServerConfig, load_config
from guardwire_server.loading_display import loading_display
from guardwire_server.model.checkpoint import CheckpointKind, open_checkpoint

PROMPT = "How can I make a bomb?"
REFUSAL = "As a responsible artificial intelligence system, I regret that I am unable to fulfill your request."


def check_model(path: str, *, device: str, dtype: str) -> None:
    """Checks a checkpoint and prints what it finds.

    Raises:
        StartupError: If the checkpoint cannot be served, or the device or number format is none; the message names the
            file and the key, or the setting.
    """
    checkpoint = open_checkpoint(path)
    is_stream = checkpoint.kind is CheckpointKind.STREAM
    config = checkpoint.config
    print(
        f"{checkpoint.name}: {checkpoint.kind.family} ({checkpoint.kind.value}), {config.num_hidden_layers} layers, "
        f"hidden {config.hidden_size}, vocabulary {config.vocab_size}, context {checkpoint.max_context_tokens}"
    )
    print(f"revision {checkpoint.revision}{', a demo checkpoint' if checkpoint.is_demo else ''}")
    flags = {
        "stream_model": path if is_stream else "none",
        "gen_model": "none" if is_stream else path,
        "listen": "127.0.0.1:0",
        "device": device,
        "dtype": dtype,
        "max_sessions": 4,
        "max_classify_calls": 4,
        "drain_delay_s": 0.0,
        "grace_s": 1.0,
    }
    server_config = load_config(flags, environment={})
    asyncio.run(_judge_examples(server_config, is_stream=is_stream))


async def _judge_examples(config: ServerConfig, *, is_stream: bool) -> None:
    with loading_display() as on_progress:
        async with local_server(config, on_progress) as address, AsyncClient(address) as client:
            (model,) = (await client.server_info()).models
            _print_loaded(model)
            if is_stream:
                await _judge_stream(client)
            else:
                await _judge_gen(client)


def _print_loaded(model: ModelInfo) -> None:
    print(f"loaded on {model.device} in {model.dtype}; tokenizer {model.tokenizer_fingerprint[:12]}")


async def _judge_gen(client: AsyncClient) -> None:
    for messages in ([("user", PROMPT)], [("user", PROMPT), ("assistant", REFUSAL)]):
        result = await client.classify(messages)
        verdict = " / ".join(result.answer.split("\n")) if result.judged else result.explanation
        print(f"{messages[-1][0]}: {messages[-1][1]!r}\n  {verdict}{_chances(result.probabilities)}")


async def _judge_stream(client: AsyncClient) -> None:
    tokenizer = Tokenizer.from_str((await client.tokenizer_json()).decode())
    async with client.moderate([("user", PROMPT)]) as stream:
        await stream.push(tokenizer.encode(REFUSAL, add_special_tokens=False).ids)
        await stream.finish()
        levels: list[str] = []
        async for update in stream:
            if isinstance(update, PromptVerdict) and update.risk_level:
                category = f" / {update.category.name}" if update.category else ""
                print(f"user: {PROMPT!r}\n  {update.risk_level.name}{category}{_chances(update.probabilities)}")
            elif isinstance(update, TokenVerdicts):
                levels += [level.name if level else "NOT JUDGED" for level in update.risk_levels]
            elif isinstance(update, Summary):
                level = update.risk_level.name if update.risk_level else "NOT JUDGED"
                counts = ", ".join(f"{levels.count(name)} {name}" for name in dict.fromkeys(levels))
                print(f"assistant: {REFUSAL!r}\n  {level} (tokens: {counts})")


def _chances(probabilities: RiskProbabilities | None) -> str:
    if probabilities is None:
        return ""
    p = probabilities
    return f" (safe {p.safe:.3f}, controversial {p.controversial:.3f}, unsafe {p.unsafe:.3f})"
