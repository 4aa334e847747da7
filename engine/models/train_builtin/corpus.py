"""The training corpus: documents with weights, one JSON object a line, gzipped, and a manifest of where they come from.

{"weight": 3, "text": "..."} is plain text; {"weight": 1, "turns": [question, answer, ...]} is a conversation, with
"system" where it has a system prompt. A weight says how often an epoch sees the document; below 1, which share of
epochs do.
"""

import gzip
import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from random import Random
from typing import Any

from engine.models.train_builtin import dialogue
from engine.models.train_builtin.library import Entry, standard_library
from engine.models.train_builtin.packages import package_texts
from engine.models.train_builtin.smalltalk import STORIES, SYSTEM_PROMPTS

# Modules that people ask about first; their entries weigh more.
FAMILIAR = set(
    """
builtins os os.path sys json re math random itertools functools collections datetime time pathlib string statistics
subprocess threading asyncio logging csv socket heapq bisect copy shutil tempfile hashlib dataclasses enum io contextlib
operator decimal fractions textwrap glob fnmatch uuid base64 secrets queue argparse pickle struct zlib gzip sqlite3
typing str list dict set tuple int float bytes
""".split()
)
MAX_DOCUMENT = 12_000
"""Characters; longer texts are cut at paragraphs, so that one document fits a context."""

SYSTEM_SHARE = 0.15
"""Of the conversations, with a system prompt that changes nothing: clients send one whatever the model."""

Document = dict[str, Any]


def write_corpus(path: Path, seed: int = 0) -> dict[str, Any]:
    """Write the corpus to `path` (.jsonl.gz) and its manifest beside it; returns the manifest.

    The same interpreter and packages give the same bytes.
    """
    sizes: Counter[str] = Counter()
    sources: dict[str, str] = {}
    draft = path.with_suffix(".part")
    with draft.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as zipped:
        random = Random(seed)
        for source, document in _documents(random, sources):
            if "turns" in document and random.random() < SYSTEM_SHARE:
                document["system"] = random.choice(SYSTEM_PROMPTS)
            line = json.dumps(document) + "\n"
            sizes[source] += len(line)
            zipped.write(line.encode())
    manifest = {
        "python": platform.python_version(),
        "seed": seed,
        "sources": [{"name": name, "licence": sources[name], "bytes": size} for name, size in sizes.most_common()],
    }
    draft.replace(path)
    manifest_path(path).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def manifest_path(corpus: Path) -> Path:
    """The manifest's place beside its corpus."""
    return corpus.with_suffix(".manifest.json")


def _documents(random: Random, sources: dict[str, str]) -> Iterator[tuple[str, Document]]:
    """(source, document) pairs; fills `sources` with the licence of each source as it goes."""
    sources["Baton: conversations"] = "this project's own"
    for turns in dialogue.small_talk():
        yield "Baton: conversations", {"weight": 12, "turns": turns}
    for turns in dialogue.arithmetic():
        yield "Baton: conversations", {"weight": 3, "turns": turns}
    for text in STORIES:
        yield "Baton: conversations", {"weight": 12, "text": text}
    library = f"Python {platform.python_version()} standard library"
    sources[library] = "PSF-2.0"
    for document in _library_documents(standard_library(), random):
        yield library, document
    for package in package_texts():
        source = f"{package.distribution} {package.version}"
        sources[source] = package.licence
        for part in _parts(package.text):
            yield source, {"weight": 0.25, "text": part}


def _library_documents(entries: list[Entry], random: Random) -> Iterator[Document]:
    by_module: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_module[_owner(entry)].append(entry)
        weight = 3 if _owner(entry) in FAMILIAR or entry.name in FAMILIAR else 1
        for turns in dialogue.about(entry, random):
            yield {"weight": weight, "turns": turns}
        yield {"weight": 0.15, "turns": dialogue.unknown(random.sample(entries, 50), random)}
    for module, members in by_module.items():
        names = [entry.name.removeprefix(f"{module}.") for entry in members if entry.kind != "module"]
        if names:
            yield {"weight": 2, "turns": dialogue.contents(module, names, random)}
        for first, second in zip(members, random.sample(members, len(members)), strict=True):
            yield {"weight": 0.5, "turns": dialogue.follow_up(first, second, random)}
        for part in _parts("\n\n\n".join(f"{entry.name}{entry.signature}\n\n{entry.doc}" for entry in members)):
            yield {"weight": 2, "text": part}
    for topic in topics.values():
        for part in _parts(topic.strip()):
            yield {"weight": 2, "text": part}


def _owner(entry: Entry) -> str:
    """The module or class that a name belongs to."""
    if entry.kind == "module":
        return entry.name
    return entry.name.rpartition(".")[0] or "builtins"


def _parts(text: str) -> Iterator[str]:
    part = ""
    for paragraph in text.split("\n\n"):
        if part and len(part) + len(paragraph) > MAX_DOCUMENT:
            yield part
            part = ""
        part += ("\n\n" if part else "") + paragraph[:MAX_DOCUMENT]
    if part.strip():
        yield part
