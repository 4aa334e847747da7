"""A Dockerfile's instructions, read strictly: anything that this does not understand is an error."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

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
