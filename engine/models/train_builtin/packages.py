"""Prose from the documentation strings of installed packages whose licence lets anybody use them."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PERMISSIVE = re.compile(r"\b(0BSD|Apache|BSD|ISC|ISCL|MIT|PSF|Python Software Foundation)\b", re.IGNORECASE)
RESTRICTED = re.compile(r"\b(A?GPL|LGPL|MPL|Mozilla|EPL|CDDL|CNRI|Proprietary|NVIDIA)\b", re.IGNORECASE)
MIN_PARAGRAPH = 60
MIN_LETTERS = 0.77
"""Share of letters and spaces that tells prose from tables, code and markup."""


@dataclass(frozen=True, slots=True)
class PackageText:
    """The prose of one module of one distribution."""

    distribution: str
    version: str
    licence: str
    text: str


def package_texts() -> Iterator[PackageText]:
    """Every paragraph once, however many functions repeat it; by distribution and path, so the order is stable."""
    seen: set[str] = set()
    for distribution in sorted(metadata.distributions(), key=lambda each: each.metadata["Name"].lower()):
        licence = _licence(distribution.metadata)
        if not PERMISSIVE.search(licence) or RESTRICTED.search(licence):
            continue
        for path in _sources(distribution):
            paragraphs = [each for each in _paragraphs(path) if each not in seen]
            seen.update(paragraphs)
            if paragraphs:
                name = distribution.metadata["Name"]
                yield PackageText(name, distribution.version, licence, "\n\n".join(paragraphs))


def _licence(fields: metadata.PackageMetadata) -> str:
    """The licence in one line: an SPDX expression, else classifiers, else the free field."""
    if expression := fields.get_all("License-Expression"):
        return str(expression[0])
    classifiers = [line.split(" :: ")[-1] for line in fields.get_all("Classifier", []) if line.startswith("License")]
    return "; ".join(classifiers or fields.get_all("License", [])[:1]).split("\n")[0]


def _sources(distribution: metadata.Distribution) -> list[Path]:
    files = [Path(str(file.locate())) for file in distribution.files or [] if file.suffix == ".py"]
    return sorted(path for path in files if path.is_file() and not {"test", "tests", "_vendor"} & set(path.parts))


def _paragraphs(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return  # templates and test data that are not Python
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                text = " ".join(paragraph.split())
                if _is_prose(text):
                    yield text


def _is_prose(text: str) -> bool:
    if len(text) < MIN_PARAGRAPH or not text.isascii() or not text[0].isupper():
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= MIN_LETTERS * len(text) and "copyright" not in text.lower()
