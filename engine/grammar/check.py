"""Can this grammar be compiled? Asked of a process of its own, which a hostile grammar may hang, fill or crash.

llguidance bounds what it builds, but not every way there: some patterns take it minutes, and rules that lead to each
other thousands deep overflow its stack, which ends the process. A router asks here first, so workers only ever meet
grammars that this process has survived, under the same limits.

    parent, a line each                 child: python -m engine.grammar.check FOLDER VOCAB_SIZE
                                   <-   ready
    {"kind": ..., "source": ...}   ->   compiles, with MAX_CPU_S of processor time to do it in
                                   <-   {"error": null}
"""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from engine.core.errors import BatonError, CheckpointError, Code, InvalidRequest, Unavailable
from engine.core.types import Grammar, GrammarKind
from engine.grammar.compiler import MAX_SOURCE_CHARS, Compiler
from engine.grammar.vocabulary import load_vocabulary

MAX_CPU_S = 1.0
"""Of one grammar. A worker that meets it takes as long, and its other rows wait when the prompt is computed sooner."""
_KILL_AFTER_S = 2
"""RLIMIT_CPU counts whole seconds."""
_MEMORY_BYTES = 4 << 30
_PATIENCE_S = 60.0
"""On a machine so busy that a second of processor time takes this long, nobody would wait longer."""
_MAX_KNOWN = 1024
_READY = "ready\n"
_TOO_MUCH = "the grammar is too complex: compiling it takes too long or too much memory"


class GrammarChecker:
    """The parent's side. Grammars are checked one after the other; methods may be called from any thread."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Of the checkpoint in `folder`. The process starts with the first grammar."""
        self._command = [sys.executable, "-m", "engine.grammar.check", str(folder), str(vocab_size)]
        self._known: OrderedDict[bytes, str | None] = OrderedDict()
        """By digest: None for a good one, else what is wrong with it."""
        self._child: subprocess.Popen[str] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar-check")

    def check(self, grammar: Grammar) -> "Future[None]":
        """The future raises InvalidRequest for a bad grammar, CheckpointError where the tokenizer knows none at all,
        Unavailable when the process does not start.
        """
        return self._thread.submit(self._check, grammar)

    def close(self) -> None:
        """End the process. Idempotent; a later check starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _check(self, grammar: Grammar) -> None:
        if len(grammar.source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(f"the grammar has more than {MAX_SOURCE_CHARS} characters")
        question = json.dumps({"kind": grammar.kind, "source": grammar.source}) + "\n"
        digest = blake2b(question.encode(), digest_size=16).digest()
        if digest not in self._known:
            self._known[digest] = self._ask(question)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(digest)
        error = self._known[digest]
        if error is not None:
            raise InvalidRequest(error)

    def _ask(self, question: str) -> str | None:
        child = self._running()
        assert child.stdin is not None and child.stdout is not None
        too_late = threading.Timer(_PATIENCE_S, child.kill)
        too_late.start()
        try:
            child.stdin.write(question)
            child.stdin.flush()
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            too_late.cancel()
        if not answer:
            self.close()
            return _TOO_MUCH
        told = json.loads(answer)
        if told["error"] is not None and told["code"] != Code.INVALID_ARGUMENT:
            raise CheckpointError(told["error"])
        error: str | None = told["error"]
        return error

    def _running(self) -> "subprocess.Popen[str]":
        if self._child is None or self._child.poll() is not None:
            self.close()
            environment = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
            environment["PYTHONPATH"] = os.pathsep.join(sys.path)
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            assert self._child.stdout is not None
            if self._child.stdout.readline() != _READY:
                self.close()
                raise Unavailable("the process that checks grammars does not start; the log has it")
        return self._child


def serve(folder: Path, vocab_size: int) -> None:
    """The child's side, until its input ends."""
    compiler = Compiler(lambda: load_vocabulary(folder, vocab_size))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(_READY)
    sys.stdout.flush()
    for question in sys.stdin:
        told = json.loads(question)
        sys.stdout.write(json.dumps(_verdict(compiler, Grammar(GrammarKind(told["kind"]), told["source"]))) + "\n")
        sys.stdout.flush()


def _verdict(compiler: Compiler, grammar: Grammar) -> dict[str, str | None]:
    try:
        compiler.load()  # not on the grammar's account
        _allow_cpu(_KILL_AFTER_S)
        begun_s = time.process_time()
        compiler.open(grammar).result()
        if time.process_time() - begun_s > MAX_CPU_S:
            raise InvalidRequest(_TOO_MUCH)
    except BatonError as error:
        return {"error": error.message, "code": error.code}
    return {"error": None}


def _allow_cpu(seconds: int) -> None:
    """Past that the kernel ends this process. The next grammar gets as much again."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds + 1, resource.RLIM_INFINITY))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
