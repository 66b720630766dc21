from pathlib import Path
from xml.etree import ElementTree

from tests.bench.picture import draw

RESULT = {
    "machine": {"cpu": "A Processor", "cores": 2},
    "engine": {"context_tokens": 512, "step_ms": {"cache": 100.0, "reforward": 1000.0}},
    "sweep": {
        "device": "cpu",
        "dtype": "float32",
        "context_tokens": 128,
        "points": [
            {"num_streams": 1, "tokens_per_s": 17.0, "lag_p50_ms": 60.0, "lag_p95_ms": 65.0, "lag_p99_ms": 70.0},
            {"num_streams": 16, "tokens_per_s": 101.0, "lag_p50_ms": 160.0, "lag_p95_ms": 175.0, "lag_p99_ms": 190.0},
        ],
    },
}


def test_the_picture_tells_the_figures_and_where_they_come_from(tmp_path: Path) -> None:
    draw(RESULT, tmp_path / "picture.svg")
    texts = {element.text for element in ElementTree.parse(tmp_path / "picture.svg").iter() if element.text}
    assert {
        "17",
        "101",
        "Guardwire, context 128",
        "plain key-value cache, one stream, context 512: 10",
        "the reference, one stream, context 512: 1",
        "A Processor, 2 cores, cpu, float32",
        "p99",
    } <= texts


def test_the_same_figures_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw(RESULT, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
