"""The images' recipe: what it copies is there, what it runs exists, and what it makes is as safe as it says."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from guardwire_server import cli
from guardwire_server.config import load_config
from guardwire_server.core.errors import StartupError
from tests.deploy.dockerfile import instructions, is_in_context, lineage
from tests.deploy.files import DEPLOY, DOCKERFILE, ROOT

TARGETS = ("cpu", "cuda")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The files of the wheels that the stage `wheels` builds, made from what .dockerignore lets through."""
    context, made = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("wheels")
    for instruction in instructions():
        if instruction.stage == "wheels" and instruction.name == "COPY":
            *sources, destination = instruction.arguments.split()
            for source in sources:
                _copy(ROOT / source, context / destination / (source if destination == "./" else ""))
    (build,) = [each for each in instructions() if each.stage == "wheels" and each.name == "RUN"]
    packages = [word for word in shlex.split(build.arguments) if word.startswith(".")]
    assert packages == ["./clients/python", "."]
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    subprocess.run([*pip, "--wheel-dir", str(made), *packages], cwd=context, check=True, capture_output=True)
    return {path.name.partition("-")[0]: zipfile.ZipFile(path).namelist() for path in made.iterdir()}


def _copy(source: Path, destination: Path) -> None:
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    for path in filter(is_in_context, files):
        target = destination / path.relative_to(source) if source.is_dir() else destination
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def test_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    sources = [
        ROOT / source
        for instruction in instructions()
        if instruction.name == "COPY" and "from" not in instruction.options
        for source in instruction.arguments.split()[:-1]
    ]
    assert len(sources) > 5
    for source in sources:
        assert source.exists(), source
        assert is_in_context(source), source


def test_only_what_is_needed_is_in_the_context() -> None:
    for path in (".git", ".venv", "build", "tests", "deploy/compose", "server/guardwire_server.egg-info"):
        assert not is_in_context(ROOT / path / "file"), path
    assert not is_in_context(ROOT / "server" / "guardwire_server" / "core" / "__pycache__" / "policy.cpython-311.pyc")


def test_wheels_have_everything(wheels: dict[str, list[str]]) -> None:
    assert set(wheels) == {"guardwire", "guardwire_server"}
    assert {"guardwire/py.typed", "guardwire/v1/moderation_pb2.py"} <= set(wheels["guardwire"])
    server = ROOT / "server"
    for pattern in ("**/*.py", "guardwire_server/model/kernels/*", "guardwire_server/demo/checkpoints/**/*"):
        expected = {str(path.relative_to(server)) for path in server.glob(pattern) if path.is_file()}
        assert expected <= set(wheels["guardwire_server"]), expected - set(wheels["guardwire_server"])


def test_pip_takes_everything_from_the_pins() -> None:
    installs = [each for each in instructions() if each.name == "RUN" and "pip install" in each.arguments]
    assert len(installs) == 2 * len(TARGETS)
    for install in installs:
        assert "--constraint constraints.txt" in install.arguments
        copied = [each for each in lineage(install.stage) if each.name == "COPY"]
        assert any(each.arguments.startswith("constraints.txt ") for each in copied)
    assert re.search(r"^torch==2\.13\.0$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_stages_that_are_named_exist() -> None:
    stages = {each.stage for each in instructions() if each.name == "FROM"}
    for instruction in instructions():
        for stage in re.findall(r"[-,]from=([\w-]+)", instruction.arguments):
            assert stage in stages


@pytest.mark.parametrize("target", TARGETS)
def test_image_runs_without_root(target: str) -> None:
    (*_, user) = [each.arguments for each in lineage(target) if each.name == "USER"]
    uid, _, gid = user.partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert lineage(target)[-1].name == "USER"


@pytest.mark.parametrize("target", TARGETS)
def test_all_that_is_written_is_below_the_volume(target: str) -> None:
    environment = _environment(target)
    (volume,) = [each.command for each in lineage(target) if each.name == "VOLUME"]
    assert volume == [f"{environment['HOME']}/.cache"]
    for name in ("TMPDIR", *(("CUDA_CACHE_PATH",) if target == "cuda" else ())):
        assert f"{environment[name]}/".startswith(f"{volume[0]}/")
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize("target", TARGETS)
def test_commands_are_those_of_the_server(target: str) -> None:
    stage = lineage(target)
    (entry_point,) = [each.command for each in stage if each.name == "ENTRYPOINT"]
    assert entry_point == ["/usr/bin/tini", "--", "guardwire-server"]
    (command,) = [each.command for each in stage if each.name == "CMD"]
    (check,) = [each for each in stage if each.name == "HEALTHCHECK"]
    assert check.command[0] == "guardwire-server"
    parser = cli._parser()
    assert parser.parse_args(command)
    checked = parser.parse_args(check.command[1:])
    assert checked.service == "liveness"
    assert checked.timeout_s < float(check.options["timeout"].removesuffix("s"))


@pytest.mark.parametrize("target", TARGETS)
def test_configuration_of_the_image(target: str) -> None:
    environment = _environment(target)
    (copied,) = [
        each.arguments.split() for each in lineage(target) if each.name == "COPY" and "config" in each.arguments
    ]
    assert copied[1] == environment["GUARDWIRE_CONFIG"]
    settings = {name for name in environment if name.startswith("GUARDWIRE_")}
    assert settings == {"GUARDWIRE_CONFIG"}, "a variable would overrule the file that an operator mounts"
    file = {"GUARDWIRE_CONFIG": str(ROOT / copied[0])}
    with pytest.raises(StartupError, match="allow_insecure"):
        load_config({}, file)
    config = load_config({}, file | {"GUARDWIRE_ALLOW_INSECURE": "true"})
    assert config.health_listen
    (exposed,) = [each.arguments.split() for each in lineage(target) if each.name == "EXPOSE"]
    assert [address.rpartition(":")[2] for address in (config.listen, config.health_listen)] == exposed[:2]


def test_documentation_builds_both_targets() -> None:
    for text in (DOCKERFILE.read_text(), (DEPLOY / "README.md").read_text()):
        assert sorted(re.findall(r"docker build --file deploy/docker/Dockerfile --target (\w+)", text)) == list(TARGETS)
    documented = set(re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+) \|", (DEPLOY / "README.md").read_text(), re.MULTILINE))
    named = {name for row in documented for name in re.findall(r"[A-Z_]+", row)}
    assert named == {each.arguments.partition("=")[0] for each in instructions() if each.name == "ARG"}


def _environment(target: str) -> dict[str, str]:
    """What the ENV instructions of an image say."""
    variables: dict[str, str] = {}
    for each in lineage(target):
        if each.name == "ENV":
            variables |= dict(word.split("=", 1) for word in shlex.split(each.arguments))
    return variables
