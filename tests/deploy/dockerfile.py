"""The Dockerfile and .dockerignore, as far as the tests read them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.deploy.files import DOCKERFILE, ROOT


@dataclass(frozen=True)
class Instruction:
    """One instruction, with the name of its stage; for FROM, of the stage that it begins."""

    stage: str
    name: str
    arguments: str

    @property
    def command(self) -> list[str]:
        """The words of the exec form."""
        words = json.loads(self.arguments[self.arguments.index("[") :])
        assert isinstance(words, list)
        return words

    @property
    def options(self) -> dict[str, str]:
        """`--name=value` before everything else."""
        return dict(re.findall(r"--(\w+)=(\S+)", self.arguments.split(" && ")[0]))


def instructions() -> list[Instruction]:
    """All instructions, lines put together and comments left out."""
    text = "".join(f"{line}\n" for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    stage = ""
    read = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        name, _, arguments = line.strip().partition(" ")
        arguments = re.sub(r"\s+", " ", arguments)
        if name == "FROM":
            stage = arguments.rpartition(" AS ")[2]
        read.append(Instruction(stage, name, arguments))
    return read


def lineage(target: str) -> list[Instruction]:
    """The instructions that make a stage, those of the stages that it is FROM first."""
    (begin,) = [each for each in instructions() if each.name == "FROM" and each.stage == target]
    base = begin.arguments.partition(" ")[0]
    own = [each for each in instructions() if each.stage == target]
    is_ours = any(each.name == "FROM" and each.stage == base for each in instructions())
    return [*lineage(base), *own] if is_ours else own


def is_in_context(path: Path) -> bool:
    """Whether .dockerignore lets a path of the repository through: of the patterns that match, the last one says."""
    relative = PurePosixPath(path.relative_to(ROOT))
    candidates = [str(relative), *(str(parent) for parent in relative.parents)]
    is_in = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        expression = re.compile(_as_expression(pattern.removeprefix("!")))
        if any(expression.fullmatch(candidate) for candidate in candidates):
            is_in = pattern.startswith("!")
    return is_in


def _as_expression(pattern: str) -> str:
    """Docker's patterns: `*` within a name, `**/` any number of directories."""
    parts = re.split(r"(\*\*/|\*)", pattern)
    return "".join({"**/": "(?:.*/)?", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
