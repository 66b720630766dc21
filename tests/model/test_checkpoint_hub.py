"""Directories and hub names."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from guardwire_server.core.errors import StartupError
from guardwire_server.model.checkpoint_hub import checkpoint_name, find_checkpoint, hub_commit

NAME = "Qwen/Qwen3Guard-Gen-0.6B"
COMMIT = "f" * 40


def test_a_directory_is_taken_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: list[str]
) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(NAME) == tmp_path / NAME
    assert no_hub == []


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were asked of a hub that cannot be reached."""
    asked: list[str] = []

    def fail(name: str, **options: object) -> str:
        asked.append(name)
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    return asked


def test_a_hub_name_is_downloaded_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--Qwen--Qwen3Guard-Gen-0.6B" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    asked: dict[str, Any] = {}

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = find_checkpoint(NAME)
    assert found == snapshot
    assert asked["name"] == NAME
    assert {"config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer.json"} <= set(asked["patterns"])
    assert not any(".py" in pattern or pattern == "*" for pattern in asked["patterns"])
    assert hub_commit(found) == COMMIT
    assert checkpoint_name(NAME, found) == NAME


def test_a_failed_download_says_what_to_do(no_hub: list[str]) -> None:
    with pytest.raises(StartupError, match=rf"^{NAME}: .*no route to host\).*HF_TOKEN.*name its directory$"):
        find_checkpoint(NAME)
    assert no_hub == [NAME]


@pytest.mark.parametrize("name", ["./models/guard", "/models/guard", "guard", "", "a/b/c", "~/guard", "Qwen/.."])
def test_what_cannot_be_a_hub_name_is_not_asked_for(name: str, no_hub: list[str]) -> None:
    with pytest.raises(StartupError, match="no such directory, and it is no hub name"):
        find_checkpoint(name)
    assert no_hub == []


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(StartupError, match="is a file"):
        find_checkpoint(str(file))


def test_the_offline_cache_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub library's own behaviour, on which air-gapped installations rely."""
    repository = tmp_path / "models--Qwen--Qwen3Guard-Gen-0.6B"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_checkpoint(NAME) == snapshot
    with pytest.raises(StartupError, match="the hub could not provide it"):
        find_checkpoint("Qwen/Qwen3Guard-Gen-4B")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/cache/models--Qwen--Qwen3Guard-Gen-0.6B/snapshots/{COMMIT}", NAME),
        (f"/cache/other/snapshots/{COMMIT}", COMMIT),
        ("/models/my-guard", "my-guard"),
    ],
)
def test_names(path: str, name: str) -> None:
    assert checkpoint_name(path, Path(path)) == name


def test_only_a_commit_in_the_hubs_cache_is_a_commit() -> None:
    assert hub_commit(Path("/models/snapshots/main")) is None
    assert hub_commit(Path(f"/models/{COMMIT}")) is None
