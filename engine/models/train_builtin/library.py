"""What Python's standard library says of itself: every public name, its signature and its documentation string."""

import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

# Importing these opens a browser or a window, prints a poem, or finds nothing that anybody would ask about.
LEFT_OUT = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "lib2to3", "test", "encodings"}
LEFT_OUT |= {"pydoc_data", "ensurepip", "posixpath", "ntpath", "genericpath", "posix", "nt", "distutils", "__future__"}
MAX_SIGNATURE = 160
SIGNATURE_LINE = re.compile(r"^[\w.]+\(.*\)(\s*-+>.*)?\s*$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One public name of the standard library."""

    name: str
    """As one would write it: os.path.join, str.upper, json."""
    kind: str
    """module, class, exception, function or method."""
    signature: str
    """With its parentheses; empty where Python does not know it."""
    doc: str

    @property
    def summary(self) -> str:
        """The first sentences of the documentation, on one line, at most about 240 characters."""
        text = " ".join(self.doc.split("\n\n")[0].split())
        sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z`'\"])", text)
        summary = sentences[0]
        if len(sentences) > 1 and len(summary) + len(sentences[1]) < 240:
            summary += " " + sentences[1]
        return summary if summary.endswith((".", "!", "?", ":")) else summary + "."


def standard_library() -> list[Entry]:
    """Entries of every public module, in the order of names; the same interpreter gives the same list."""
    warnings.simplefilter("ignore")  # deprecated modules warn when they are imported
    modules = {name: _import(name) for name in _module_names()}  # all first: an import can change other modules
    entries: dict[str, Entry] = {}
    for name, module in modules.items():
        if module is None:
            continue
        for entry in (_entry(name, "module", module), *_members(name, module)):
            if entry is not None:
                entries.setdefault(entry.name, entry)
    return list(entries.values())


def _module_names() -> Iterator[str]:
    yield "builtins"
    yield "os.path"
    for name in sorted(sys.stdlib_module_names - LEFT_OUT - {"builtins"}):
        if name.startswith("_"):
            continue
        yield name
        module = _import(name)
        for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
            if not info.name.startswith(("_", "test")):
                yield f"{name}.{info.name}"


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None  # belongs to another platform


def _members(prefix: str, module: ModuleType) -> Iterator[Entry | None]:
    public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    dotted = "" if prefix == "builtins" else f"{prefix}."
    for name in sorted(set(public)):
        value = vars(module).get(name)
        if inspect.isclass(value):
            if _is_own(value, module):
                kind = "exception" if issubclass(value, BaseException) else "class"
                yield _entry(dotted + name, kind, value)
                yield from _methods(dotted + name, value)
        elif inspect.isroutine(value) and _is_own(value, module):
            yield _entry(dotted + name, "function", value)


def _methods(prefix: str, owner: type) -> Iterator[Entry | None]:
    for name in sorted(vars(owner)):
        value = None if name.startswith("_") else getattr(owner, name, None)
        if inspect.isroutine(value):
            yield _entry(f"{prefix}.{name}", "method", value)


def _is_own(value: Any, module: ModuleType) -> bool:
    """Whether `value` is documented here rather than imported from another public module."""
    if hasattr(module, "__all__") or module.__name__ == "builtins":
        return True
    home = getattr(value, "__module__", None) or module.__name__
    return bool(home == module.__name__ or home.lstrip("_") == module.__name__ or module.__name__ == "os.path")


def _entry(name: str, kind: str, value: Any) -> Entry | None:
    """None for what has no words of its own."""
    doc = inspect.cleandoc(value.__doc__) if isinstance(value.__doc__, str) else ""
    signature = "" if kind == "module" else _signature(value)
    lines = doc.strip().splitlines()
    stated = ""
    while lines and (SIGNATURE_LINE.match(lines[0]) or (stated and lines[0].startswith(" "))):
        first = lines.pop(0)  # documentation of built-ins starts with one signature or several
        stated = stated or first[first.index("(") :].split("-")[0].strip()
    signature = signature or stated
    doc = "\n".join(lines).strip()
    if len(doc) < 12 or "0x" in doc or not doc.isascii():
        return None
    return Entry(name, kind, signature, doc)


def _signature(value: Any) -> str:
    try:
        signature = str(inspect.signature(value))
    except (ValueError, TypeError, NameError, AttributeError):  # no signature, or one that cannot be evaluated
        return ""
    signature = signature.replace(", /", "").replace("(self, ", "(").replace("(self)", "()")
    return signature if len(signature) <= MAX_SIGNATURE and "0x" not in signature else ""
