"""What GetServerInfo tells: everything that requests may name, and the limits that they will meet."""

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server import __version__
from tests.rpc.messages import answer_ids, opening, tokens
from tests.rpc.running_server import RunningServer


async def test_models(server: RunningServer) -> None:
    info = await server.info()
    assert info.version == __version__
    stream, gen = info.models
    assert (stream.kind, stream.name) == (pb.MODEL_KIND_STREAM, "tiny-stream")
    assert (gen.kind, gen.name) == (pb.MODEL_KIND_GEN, "tiny-gen")
    assert server.models.stream
    for model in info.models:
        assert model.revision.startswith("sha256:")
        assert model.tokenizer_fingerprint == server.models.stream.tokenizer.fingerprint
        assert (model.vocabulary_size, model.max_context_tokens) == (448, 1024)
        assert (model.dtype, model.device, model.demo) == ("float32", "cpu", False)
    assert len(stream.prompt_categories) == 9
    assert len(stream.response_categories) == 8
    assert pb.CATEGORY_JAILBREAK not in stream.response_categories
    assert len(gen.prompt_categories) == 9


async def test_policies(server: RunningServer) -> None:
    policies = {policy.name: policy for policy in (await server.info()).policies}
    assert list(policies) == ["default", "strict", "observe"]
    default, strict = policies["default"], policies["strict"]
    assert (default.strictness, strict.strictness) == (pb.STRICTNESS_LOOSE, pb.STRICTNESS_STRICT)
    assert default.debounce == pb.DEBOUNCE_SAME_LEVEL
    assert (default.user.unsafe, default.assistant.unsafe) == (pb.ACTION_FLAG, pb.ACTION_BLOCK)
    assert strict.user.unsafe == pb.ACTION_BLOCK
    assert {policy.on_error for policy in policies.values()} == {pb.ACTION_BLOCK}
    assert policies["observe"].observe_only
    assert all(policy.description for policy in policies.values())


async def test_limits(server: RunningServer) -> None:
    limits, config = (await server.info()).limits, server.config
    names = ("max_sessions", "max_classify_calls", "max_tokens_per_message", "max_message_bytes", "max_messages")
    for name in names:
        assert getattr(limits, name) == getattr(config, name)
    for name in ("idle_timeout", "max_lifetime", "write_timeout"):
        assert getattr(limits, name).ToTimedelta().total_seconds() == getattr(config, f"{name}_s")


async def test_load(server: RunningServer) -> None:
    before = (await server.info()).load
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(5)))
        await call.read_verdicts(5)
        during = (await server.info()).load
        assert call.received.opened
        assert during.num_sessions == 1
        assert during.num_pending_tokens == 0
        assert during.kv_arena_used > 0
        assert during.num_steps > before.num_steps
        assert during.num_step_tokens - before.num_step_tokens == call.received.opened.num_prompt_tokens + 5
        await call.run()
    await server.settled()
    assert (await server.info()).load.kv_arena_used == 0
