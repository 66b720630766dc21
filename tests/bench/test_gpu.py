"""The GPU benchmark runs: as far as it goes without a GPU."""

from pathlib import Path

import pytest
import torch

from tests.bench import gpu
from tests.bench.gpu_models import REHEARSAL
from tests.bench.gpu_steps import Ceilings, Load


def test_the_rehearsal_goes_through_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--rehearse"]) == 0
    table = capsys.readouterr().out
    assert "within the tolerances" in table
    for load in gpu.CPU.loads:
        assert load.label in table


def test_a_flash_attention_that_is_not_fit_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "find_fault", lambda *_, **__: "off by 1")
    assert gpu.main(["--rehearse"]) == 1
    assert "nothing was measured: off by 1" in capsys.readouterr().out


def test_without_a_gpu_the_table_is_empty_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--results", str(tmp_path)]) == 0
    assert "no GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_a_step_takes_at_least() -> None:
    """By hand: every weight and every key and value once, or every product once."""
    config = REHEARSAL.config()
    load = Load(num_streams=3, context=20)
    weights = 2 * 64 * ((4 + 2 * 2 + 4) * 16 + 3 * 192)
    kv_bytes = 3 * 21 * 2 * 2 * 2 * 16 * 2
    by_memory = Ceilings(bandwidth=1.0, matrix_rate=1e30).floor_s(load, config, torch.bfloat16)
    assert by_memory == weights * 2 + kv_bytes
    by_products = Ceilings(bandwidth=1e30, matrix_rate=1.0).floor_s(load, config, torch.bfloat16)
    assert by_products == 2 * weights * 3 + 4 * 2 * 4 * 16 * 3 * 21
