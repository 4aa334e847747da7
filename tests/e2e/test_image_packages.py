"""The GPU image's Python environment: made, and resolved against what the package index has now.

By uv, which reads what packages need without fetching gigabytes of them, as pip would to tell what it would do. The
CPU image installs with the line that `make` itself ran to make the environment of these tests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.deploy.dockerfiles import FILES, ROOT, commands, of, with_arguments

pytestmark = [pytest.mark.slow(seconds=15), pytest.mark.timeout(600)]

CPU, GPU = FILES
UV = str(Path(sys.executable).parent / "uv")


def test_the_cpu_image_installs_as_make_does() -> None:
    """All but -e and the tools of developers."""
    pip = [" ".join(words[1:]) for words in commands(CPU) if words[0].endswith("/pip")]
    makefile = (ROOT / "Makefile").read_text()
    assert pip == ["install -c constraints.txt setuptools", "install --no-build-isolation -c constraints.txt .[nixl]"]
    assert "pip install --progress-bar on -c constraints.txt setuptools" in makefile
    assert "pip install --progress-bar on --no-build-isolation -c constraints.txt -e '.[dev,nixl]'" in makefile


def index(pip: str) -> list[str]:
    """Where pip is told to look, for uv, which does not read that."""
    told = subprocess.run([pip, "config", "get", "global.index-url"], capture_output=True, text=True, check=False)
    url = os.environ.get("PIP_INDEX_URL") or told.stdout.strip()
    return ["--index-url", url] if url else []


def test_the_gpu_image_resolves(tmp_path: Path) -> None:
    """The virtual environment is made; every package is found at its pin, and the project would be installed with it.

    The image's Python is 3.12; here it is the one that runs the tests.
    """
    path = GPU
    project, environment = tmp_path / "src", tmp_path / "opt"
    project.mkdir()
    for each in of(path, "COPY", stage=1):
        for word in each.text.split()[:-1]:
            source = ROOT / word
            if source.is_dir():
                shutil.copytree(source, project / word, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, project)
    for words in commands(path):
        words = [word.replace("/opt/baton", str(environment)) for word in with_arguments(path, words)]
        match words:
            case ["sed", *_]:
                subprocess.run(words, cwd=project, check=True)
            case ["python", "-m", "venv", folder]:
                subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            case [pip, "install", *rest] if pip.endswith("/pip"):
                command = [pip, "install", *rest]
                if rest[-1] != "setuptools":
                    python = str(environment / "bin" / "python")
                    command = [UV, "pip", "install", "--dry-run", "--python", python, *index(pip), *rest]
                ran = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
                assert ran.returncode == 0, ran.stdout + ran.stderr
            case [python, "-m", "compileall", *rest] if python.endswith("/python"):
                subprocess.run([python, "-m", "compileall", *rest], check=True)
