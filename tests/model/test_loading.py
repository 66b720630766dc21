"""From a checkpoint to a model that is ready to judge: how large its arena is, and what it refuses to start with."""

import logging
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config

from guardwire_server.core.errors import StartupError
from guardwire_server.core.events import Thinking
from guardwire_server.core.scheduler import SchedulerLimits
from guardwire_server.core.step_plan import Read
from guardwire_server.core.verdict import Message, Role
from guardwire_server.model import memory
from guardwire_server.model.checkpoint import CheckpointKind, check_directory, open_checkpoint
from guardwire_server.model.loading import LoadOptions, load_gen_model, load_stream_model, open_as
from guardwire_server.model.memory import available_host_bytes, choose_arena, free_memory_bytes

CPU = torch.device("cpu")
GIB = 2**30
SMALL = Qwen3Config(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
SMALL_BYTES_PER_TOKEN = 2 * 2 * 2 * 16 * 4


def options(**changes: object) -> LoadOptions:
    values: dict[str, Any] = {
        "device": CPU,
        "dtype": torch.float32,
        "max_sequences": 8,
        "step_limits": SchedulerLimits(max_num_batched_tokens=64),
        "max_context_tokens": 1000,
        "kv_memory_gib": 0.1,
    }
    return LoadOptions(**(values | changes))


def arena(num_tokens: float, *, dtype: torch.dtype = torch.float32, **changes: object) -> tuple[int, int]:
    """The arena that so many tokens' worth of memory makes, counted in float32."""
    values: dict[str, Any] = {
        "max_context_tokens": 1000,
        "max_sequences": 100,
        "memory_gib": num_tokens * SMALL_BYTES_PER_TOKEN / GIB,
    }
    return choose_arena(SMALL, CPU, dtype, **(values | changes))


class TestArena:
    def test_a_root_holds_the_longest_conversation(self) -> None:
        assert arena(10 * 1024) == (10, 1024)
        assert arena(10 * 1024 + 1023) == (10, 1024)

    def test_half_the_bytes_a_value_make_twice_the_tokens(self) -> None:
        assert arena(10 * 1024, dtype=torch.bfloat16) == (20, 1024)

    def test_less_than_one_conversation_shortens_conversations(self) -> None:
        assert arena(1023) == (1, 512)
        assert arena(64) == (1, 64)

    def test_too_little_for_anything_refuses_to_start(self) -> None:
        with pytest.raises(StartupError, match="kv_memory_gib"):
            arena(63)

    def test_no_more_is_taken_than_all_sequences_can_use(self) -> None:
        num_roots, root_tokens = arena(10**9, max_sequences=3)
        assert root_tokens == 1024
        assert num_roots * root_tokens <= 3 * 2 * 1024

    @pytest.mark.parametrize(("num_tokens", "is_told"), [(3 * 2 * 1000, False), (3 * 2 * 1000 + 1, True)])
    def test_what_is_wanted_beyond_that_is_told(
        self, caplog: pytest.LogCaptureFixture, num_tokens: int, is_told: bool
    ) -> None:
        arena(num_tokens, max_sequences=3)
        wanted, taken = (count * SMALL_BYTES_PER_TOKEN / GIB for count in (num_tokens, 3 * 2 * 1000))
        told = (
            f"kv_memory_gib: {wanted:g} GiB are wanted, but {taken:.3g} GiB are taken: "
            "3 conversations of 1000 tokens never need more"
        )
        assert [record.getMessage() for record in caplog.records] == ([told] if is_told else [])

    def test_by_default_a_share_of_what_is_free_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "free_memory_bytes", lambda _: 4 * 10 * 1024 * SMALL_BYTES_PER_TOKEN)
        assert memory.FREE_SHARE["cpu"] == 0.25
        assert arena(0, memory_gib=None) == (10, 1024)

    def test_free_memory_is_some_of_the_memory(self) -> None:
        assert 0 < free_memory_bytes(CPU) == pytest.approx(available_host_bytes(), rel=0.5)

    def test_what_files_occupy_counts_as_free(self, tmp_path: Path) -> None:
        assert available_host_bytes(meminfo(tmp_path), tmp_path) == 8_000_000 * 1024

    @pytest.mark.parametrize(("limit", "expected"), [("5000000000", 2_500_000_000), ("1000", 0), ("max", 8192 * 10**6)])
    def test_a_containers_limit_counts(self, tmp_path: Path, limit: str, expected: int) -> None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("3000000000\n")
        (tmp_path / "memory.stat").write_text("anon 2500000000\ninactive_file 500000000\nactive_file 7\n")
        assert available_host_bytes(meminfo(tmp_path), tmp_path) == expected

    def test_without_linux_the_free_pages_count(self, tmp_path: Path) -> None:
        assert available_host_bytes(tmp_path / "absent", tmp_path) > 0


def meminfo(directory: Path) -> Path:
    file = directory / "meminfo"
    file.write_text("MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    8000000 kB\n")
    return file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_model_is_loaded_whole(stream_path: Path, dtype: torch.dtype) -> None:
    heard: list[tuple[str, int, int]] = []
    loading = options(dtype=dtype, on_progress=lambda name: lambda done, total: heard.append((name, done, total)))
    model = load_stream_model(open_checkpoint(stream_path), loading)
    assert (model.device_name, model.dtype_name) == ("cpu", str(dtype).removeprefix("torch."))
    assert model.max_context_tokens == 1000
    assert model.longest_step_s > 0
    assert heard[-1][1] == heard[-1][2]
    assert {name for name, _, _ in heard} == {model.checkpoint.name}


def test_warming_up_leaves_nothing_behind(stream_path: Path, gen_path: Path) -> None:
    for model in (
        load_stream_model(open_checkpoint(stream_path), options()),
        load_gen_model(open_checkpoint(gen_path), options()),
    ):
        scheduler = model.scheduler
        assert (scheduler.num_sequences, scheduler.arena_used, scheduler.num_evictions) == (0, 0.0, 0)
        assert not scheduler.has_work


def test_a_step_budget_beyond_the_arena_is_no_obstacle(stream_path: Path) -> None:
    limits = SchedulerLimits(max_num_batched_tokens=4096)
    model = load_stream_model(open_checkpoint(stream_path), options(step_limits=limits, max_context_tokens=64))
    assert model.scheduler.max_sequence_tokens == 64


@pytest.mark.parametrize(("asked", "given"), [(None, 8192), (100, 100), (100_000, 8192)])
def test_the_context_is_at_most_the_checkpoints(stream_path: Path, asked: int | None, given: int) -> None:
    model = load_stream_model(open_checkpoint(stream_path), options(max_context_tokens=asked))
    assert model.max_context_tokens == given


def test_too_little_memory_shortens_conversations_and_says_so(
    stream_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory_gib = 600 * SMALL_BYTES_PER_TOKEN / GIB
    with caplog.at_level(logging.WARNING):
        model = load_stream_model(open_checkpoint(stream_path), options(kv_memory_gib=memory_gib))
    assert model.max_context_tokens == model.scheduler.max_sequence_tokens == 512
    assert "the memory limits conversations to 512 tokens" in caplog.text


def test_a_loaded_stream_model_judges(stream_path: Path) -> None:
    model = load_stream_model(open_checkpoint(stream_path), options())
    turn = model.renderer.prompt([Message(Role.USER, "How do I bake bread?")], Thinking.OFF)
    model.scheduler.add(0)
    reads = bytearray(len(turn.token_ids))
    reads[turn.query_index] = Read.QUERY
    model.scheduler.extend(0, turn.token_ids, bytes(reads))
    readings = model.backend.step(model.scheduler.schedule())
    assert len(readings.queries) == 1


def test_a_loaded_gen_model_knows_where_answers_decide_and_end(gen_path: Path) -> None:
    model = load_gen_model(open_checkpoint(gen_path), options(max_context_tokens=None))
    encode = model.tokenizer.encode_plain
    prefix = model.backend.verdict_prefix
    assert tuple(encode("Safety: Unsafe"))[: len(prefix)] == prefix
    added = model.tokenizer.added_tokens
    assert model.backend.end_ids == {added["<|im_end|>"], added["<|endoftext|>"]}
    ids = model.renderer.conversation([Message(Role.USER, "hello")])
    assert isinstance(ids, array)
    answer = [*encode("Safety: Safe"), model.tokenizer.control.im_end]
    assert model.renderer.text(answer) == "Safety: Safe"


def test_the_other_family_is_refused_by_the_settings_name(stream_path: Path, gen_path: Path) -> None:
    for path, kind, told in (
        (stream_path, CheckpointKind.GEN, "gen_model: tiny-stream is a Qwen3Guard-Stream .*: give it as stream_model"),
        (gen_path, CheckpointKind.STREAM, "stream_model: tiny-gen is a Qwen3Guard-Gen .*: give it as gen_model"),
    ):
        with pytest.raises(StartupError, match=told):
            open_as(kind, str(path))
        with pytest.raises(StartupError, match=told.partition(": ")[2]):
            check_directory(path, kind)


def test_whatever_is_wrong_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(StartupError) as raised:
        open_as(CheckpointKind.GEN, str(tmp_path))
    assert raised.value.message.startswith(f"gen_model: {tmp_path / 'config.json'}: there is no such file")


def test_the_right_family_is_opened_quietly(stream_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_directory(stream_path, CheckpointKind.STREAM)
    assert open_as(CheckpointKind.STREAM, str(stream_path)).kind is CheckpointKind.STREAM
    assert not caplog.records


@pytest.mark.parametrize(("asked", "is_told"), [(None, False), (8192, False), (8193, True)])
def test_a_context_beyond_the_checkpoints_is_told(
    stream_path: Path, caplog: pytest.LogCaptureFixture, asked: int | None, is_told: bool
) -> None:
    load_stream_model(open_checkpoint(stream_path), options(max_context_tokens=asked, kv_memory_gib=None))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == (
        [
            "max_context_tokens: 8193 are wanted, but conversations with tiny-stream are limited to 8192, "
            "which it was made for"
        ]
        if is_told
        else []
    )


def test_how_a_model_runs_is_told(stream_path: Path, gen_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_stream_model(open_checkpoint(stream_path), options(kv_dtype=torch.bfloat16, max_sequences=2))
        load_gen_model(open_checkpoint(gen_path), options(max_sequences=2))
    told = [record.getMessage() for record in caplog.records if "revision" in record.msg]
    revisions = [open_checkpoint(path).revision for path in (stream_path, gen_path)]
    assert told == [
        f"stream_model: tiny-stream, revision {revisions[0]}, on cpu in float32 with torch alone; conversations of up "
        f"to 1000 tokens; keys and values of 3072 tokens in bfloat16, {3072 * SMALL_BYTES_PER_TOKEN / 2 / GIB:.3g} GiB",
        f"gen_model: tiny-gen, revision {revisions[1]}, on cpu in float32 with torch alone; conversations of up "
        f"to 1000 tokens; keys and values of 3072 tokens in float32, {3072 * SMALL_BYTES_PER_TOKEN / GIB:.3g} GiB",
    ]
