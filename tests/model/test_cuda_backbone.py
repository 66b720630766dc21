"""Which steps are recorded, what is replayed when, and which path a model takes; without a GPU."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3Model

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.scheduler import SchedulerLimits
from guardwire_server.core.step_plan import StepPlan
from guardwire_server.model import cuda_backbone as cuda_backbone_module
from guardwire_server.model import cuda_forward, loading
from guardwire_server.model.backbone import Backbone, Stepper
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_weights import load_gen, load_stream
from guardwire_server.model.cuda_backbone import NUM_TRASH_SLOTS, CudaBackbone, cuda_backbone
from guardwire_server.model.cuda_batch import Bucket, StepInputs, StepSize, default_buckets
from guardwire_server.model.cuda_graphs import Recording, record_all
from guardwire_server.model.gen_backend import TorchGenBackend
from guardwire_server.model.loading import LoadOptions, build_backbone, load_gen_model, load_stream_model
from guardwire_server.model.ragged_attention import KvTensors
from guardwire_server.model.stream_backend import TorchStreamBackend
from tests.model.cuda_stepping import Ragged, ReplayRecorder, cuda_stepper, plan_of
from tests.model.flash_reference import reference_flash

CPU = torch.device("cpu")
NUM_SLOTS = 512
LARGEST = StepSize(max_tokens=64, max_seqs=8, max_keys=64)
EXTENTS = [Extent(64 * number, 64) for number in range(6)]
SMALL, MIDDLE, LARGE = (Bucket(size, 1, size, 64) for size in (2, 4, 8))


class Diary:
    """Records by writing down what it is told; a recording's output is its number of tokens."""

    def __init__(self, *unrecordable: Bucket) -> None:
        self.entries: list[str] = []
        self._unrecordable = unrecordable
        self._bucket = SMALL

    def work_for(self, bucket: Bucket) -> Callable[[], torch.Tensor]:
        self.entries.append(f"prepare {bucket.num_tokens}")
        self._bucket = bucket
        return lambda: torch.tensor([bucket.num_tokens])

    def record(self, work: Callable[[], torch.Tensor]) -> Recording:
        if self._bucket in self._unrecordable:
            raise RuntimeError("out of memory")
        self.entries.append(f"record {self._bucket.num_tokens}")
        return Recording(lambda: None, work())


def test_the_largest_is_recorded_first_and_over_inputs_of_its_own() -> None:
    diary = Diary()
    recordings = record_all((SMALL, MIDDLE, LARGE), diary.work_for, diary.record)
    assert diary.entries == [f"{what} {size}" for size in (8, 4, 2) for what in ("prepare", "record")]
    assert list(recordings) == [SMALL, MIDDLE, LARGE], "the cheapest is looked at first"
    assert recordings[MIDDLE].output.tolist() == [4]


def test_what_cannot_be_recorded_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    diary = Diary(SMALL, LARGE)
    with caplog.at_level(logging.WARNING):
        recordings = record_all((SMALL, MIDDLE, LARGE), diary.work_for, diary.record)
    assert list(recordings) == [MIDDLE]
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 step sizes cannot be recorded as CUDA graphs: out of memory"
    ]


def test_recordings_that_all_succeed_are_nothing_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    diary = Diary()
    record_all((SMALL, MIDDLE, LARGE), diary.work_for, diary.record)
    assert not caplog.records


def backbone(path: Path, recorder: ReplayRecorder | None) -> CudaBackbone:
    model = load_stream(open_checkpoint(path), CPU, torch.float32).model
    return cuda_stepper(model, NUM_SLOTS, LARGEST, recorder, reference_flash)


def test_every_bucket_is_recorded_once_and_replayed_when_it_fits(stream_path: Path) -> None:
    recorder = ReplayRecorder()
    stepper = backbone(stream_path, recorder)
    assert recorder.num_recorded == len(default_buckets(LARGEST))
    assert recorder.num_replayed == 0
    stepper.step(plan_of((EXTENTS[0], 0, [1, 2, 3])))
    assert recorder.num_replayed == 1


def test_a_step_beyond_the_recordings_is_computed_without_one(stream_path: Path) -> None:
    recorder = ReplayRecorder()
    stepper, plain = backbone(stream_path, recorder), backbone(stream_path, None)
    plan = plan_of((Extent(0, 128), 0, [7] * 100))
    torch.testing.assert_close(stepper.step(plan), plain.step(plan))
    assert recorder.num_replayed == 0


def test_recording_leaves_the_arena_alone(stream_path: Path) -> None:
    """The steps that are recorded are all padding; what that writes goes to the trash slot and nowhere else."""
    kv = backbone(stream_path, ReplayRecorder()).kv
    for tensor in (kv.keys, kv.values):
        assert tensor.shape[2] == NUM_SLOTS + NUM_TRASH_SLOTS
        assert tensor[:, :, :NUM_SLOTS].isnan().all()
        assert not tensor[:, :, NUM_SLOTS].isnan().any()


def test_a_replay_reads_this_steps_inputs(stream_path: Path) -> None:
    """The forward sees the buffer that was there when it was recorded, with what was sent since."""
    seen: list[list[int]] = []

    def forward(inputs: StepInputs[torch.Tensor], kv: KvTensors) -> torch.Tensor:
        seen.append(inputs.ids.tolist())
        return inputs.ids.unsqueeze(1)

    config = load_stream(open_checkpoint(stream_path), CPU, torch.float32).config
    kv = KvTensors(config, NUM_SLOTS + NUM_TRASH_SLOTS, CPU, torch.float32)
    stepper = CudaBackbone(forward, kv, LARGEST, ReplayRecorder())
    del seen[:]
    assert stepper.step(plan_of((EXTENTS[0], 5, [11]), (EXTENTS[1], 0, [12]), (EXTENTS[2], 0, [13]))).tolist() == [
        [11],
        [12],
        [13],
    ]
    assert seen == [[11, 12, 13, 0]]


def plans(seed: int) -> list[StepPlan]:
    ragged = Ragged(EXTENTS, vocabulary_size=400, seed=seed)
    return [plan_of(*((EXTENTS[index], start, ids) for index, start, ids in chunks)) for chunks in ragged.steps(8)]


def test_the_backends_give_the_same_over_either_backbone(stream_path: Path, gen_path: Path) -> None:
    ours, other = (load_stream(open_checkpoint(stream_path), CPU, torch.float32) for _ in range(2))
    fast = TorchStreamBackend(ours, cuda_stepper(ours.model, NUM_SLOTS, LARGEST, ReplayRecorder(), reference_flash))
    plain = TorchStreamBackend(other, Backbone(other.model, NUM_SLOTS))
    for plan in plans(seed=0):
        left, right = fast.step(plan).responses, plain.step(plan).responses
        assert left.risk_levels == right.risk_levels
        assert list(left.probabilities) == pytest.approx(list(right.probabilities), abs=1e-4)

    weights, other_weights = (load_gen(open_checkpoint(gen_path), CPU, torch.float32) for _ in range(2))
    stepper = cuda_stepper(weights.backbone, NUM_SLOTS, LARGEST, ReplayRecorder(), reference_flash)
    options: dict[str, Any] = {
        "end_ids": frozenset(),
        "verdict_prefix": [],
        "verdict_ids": (10, 20, 30),
        "likely_answers": {},
    }
    fast_gen = TorchGenBackend(stepper, weights.lm_head, **options)
    plain_gen = TorchGenBackend(Backbone(other_weights.backbone, NUM_SLOTS), other_weights.lm_head, **options)
    for plan in plans(seed=1):
        read_all = StepPlan((), tuple(chunk._replace(reads=b"\3" * len(chunk.ids)) for chunk in plan.chunks))
        assert fast_gen.step(read_all).next_ids == plain_gen.step(read_all).next_ids


def test_on_a_cpu_nothing_is_asked_of_a_gpu(stream_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "cuda_backbone", None)
    model = load_stream(open_checkpoint(stream_path), CPU, torch.float32).model
    assert isinstance(build_backbone(model, NUM_SLOTS, LARGEST), Backbone)


@pytest.mark.parametrize("is_fit", [True, False])
def test_on_a_gpu_its_own_backbone_goes_first(monkeypatch: pytest.MonkeyPatch, is_fit: bool) -> None:
    model: Any = SimpleNamespace(embed_tokens=SimpleNamespace(weight=SimpleNamespace(device=torch.device("cuda", 0))))
    monkeypatch.setattr(loading, "cuda_backbone", lambda *arguments: ("fast", *arguments) if is_fit else None)
    monkeypatch.setattr(loading, "Backbone", lambda *arguments: ("plain", *arguments))
    chosen: Any = build_backbone(model, NUM_SLOTS, LARGEST, None, torch.bfloat16)
    fast, plain = ("fast", model, NUM_SLOTS, LARGEST, torch.bfloat16), ("plain", model, NUM_SLOTS, None, torch.bfloat16)
    assert chosen == (fast if is_fit else plain)


def test_the_largest_step_is_what_the_limits_and_the_arena_allow(
    stream_path: Path, gen_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[StepSize] = []

    def build(model: Qwen3Model, num_slots: int, largest: StepSize, *others: Any) -> Stepper:  # noqa: ANN401
        seen.append(largest)
        return build_backbone(model, num_slots, largest, *others)

    monkeypatch.setattr(loading, "build_backbone", build)
    limits = SchedulerLimits(max_num_batched_tokens=64, max_num_seqs=8)
    options = LoadOptions(CPU, torch.float32, 8, limits, max_context_tokens=1000, kv_memory_gib=0.1)
    load_stream_model(open_checkpoint(stream_path), options)
    load_gen_model(open_checkpoint(gen_path), options)
    assert seen == [StepSize(max_tokens=64, max_seqs=8, max_keys=1024)] * 2


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the choice asks of a GPU is answered; attention and recording are those without one."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(cuda_backbone_module, "flash_attention", lambda: reference_flash)
    monkeypatch.setattr(cuda_forward, "flash_attention", lambda: reference_flash)
    monkeypatch.setattr(cuda_backbone_module, "CudaRecorder", lambda _: ReplayRecorder())


@pytest.mark.usefixtures("as_on_a_gpu")
def test_where_all_is_there_the_fast_path_is_taken(stream_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_stream(open_checkpoint(stream_path), CPU, torch.bfloat16).model
    stepper = cuda_backbone(model, NUM_SLOTS, LARGEST)
    assert isinstance(stepper, CudaBackbone)
    assert stepper.kv.keys.shape[2] == NUM_SLOTS + NUM_TRASH_SLOTS
    assert not len(model.layers), "taken over"
    assert stepper.step(plan_of((EXTENTS[0], 0, [1, 2]))).isfinite().all()
    assert not caplog.records


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("cause", ["dtype", "operator"])
def test_what_is_not_fit_is_left_as_it_was_and_said_once(
    stream_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    if cause == "operator":
        monkeypatch.setattr(cuda_backbone_module, "flash_attention", cuda_forward.flash_attention)
        monkeypatch.setattr(cuda_backbone_module, "find_fault", lambda *_, **__: "off by 1")
    model = load_stream(open_checkpoint(stream_path), CPU, torch.float32 if cause == "dtype" else torch.bfloat16).model
    num_layers = len(model.layers)
    with caplog.at_level(logging.WARNING):
        assert cuda_backbone(model, NUM_SLOTS, LARGEST) is None
    assert len(model.layers) == num_layers
    (record,) = caplog.records
    assert "runs transformers' layers" in record.getMessage()
