"""A Dockerfile's instructions, read strictly: anything that this does not understand is an error."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FILES = tuple(sorted((ROOT / "deploy" / "docker").glob("Dockerfile.*")))
KNOWN = frozenset("ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK RUN USER WORKDIR".split())


@dataclass(frozen=True)
class Instruction:
    stage: int
    word: str
    text: str

    def words(self) -> list[str]:
        """Of CMD, ENTRYPOINT and the like, which must be in their JSON form."""
        said = json.loads(self.text)
        assert isinstance(said, list) and all(isinstance(each, str) for each in said)
        return said


def read(path: Path) -> list[Instruction]:
    """ARG before the first FROM is stage 0; the first stage is 1."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found, stage = [], 0
    for line in filter(str.strip, joined.splitlines()):
        word, _, text = line.partition(" ")
        assert word in KNOWN, line
        stage += word == "FROM"
        found.append(Instruction(stage, word, text.strip()))
    return found


def of(path: Path, word: str, stage: int = 0) -> list[Instruction]:
    return [each for each in read(path) if each.word == word and stage in (0, each.stage)]


def arguments(path: Path) -> dict[str, str]:
    """The build's arguments and their defaults."""
    return dict(each.text.split("=", 1) for each in of(path, "ARG"))


def with_arguments(path: Path, words: list[str]) -> list[str]:
    """As the shell would put them in; what is empty is no word."""
    for name, value in arguments(path).items():
        words = [word.replace(f"${{{name}}}", value) for word in words]
    return [word for word in words if word]


def commands(path: Path) -> list[list[str]]:
    """Every command of every RUN, in order."""
    return [shlex.split(part) for each in of(path, "RUN") for part in each.text.split("&&")]
