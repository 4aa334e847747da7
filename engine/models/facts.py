"""Typed reading of a checkpoint's JSON files: every wrong value is one line that names the file and the field."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Facts:
    """One JSON object and the file that it came from. A field that is absent or null has its default."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Facts":
        """Raises CheckpointError when the file is missing, unreadable or not a JSON object."""
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: missing; a checkpoint folder needs this file") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: broken JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: expected a JSON object, found {type(values).__name__}")
        return cls(path, values)

    def wrong(self, name: str, expected: str) -> CheckpointError:
        """The error for a field whose value cannot be used."""
        found = json.dumps(self.values[name]) if name in self.values else "missing"
        return CheckpointError(f"{self.path}: {name} is {found}, expected {expected}")

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        """An integer of at least `minimum`; required without a default."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.wrong(name, f"an integer of at least {minimum}")
        return value

    def number(self, name: str, default: float | None = None, *, minimum: int = 0) -> float:
        """A finite number of at least `minimum`; required without a default."""
        value = self._value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not minimum <= value < float("inf"):
            raise self.wrong(name, f"a number of at least {minimum}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def strings(self, name: str) -> list[str]:
        """A list of strings; empty when absent."""
        value = self._value(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id or a list of them; empty when absent."""
        value = self._value(name, [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
            raise self.wrong(name, "a token id or a list of token ids")
        return tuple(ids)

    def nested(self, name: str) -> "Facts | None":
        """An object inside this one; None when absent or empty."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "a JSON object")
        return Facts(self.path, value) if value else None

    def present(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value
