"""The images' Dockerfiles: hadolint's rules, our own, and each command as far as this machine can run it.

No container engine runs here. What the build stage runs is run with paths of a temporary folder: the virtual
environment for real, pip's resolution of every pinned package without installing (tests/e2e/test_image_packages.py).
Debian's packages are simulated with apt. Not exercised: the base image, copying between stages, the image as a whole.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.unit.deploy.dockerfiles import FILES, ROOT, Instruction, arguments, commands, of, read, with_arguments

HADOLINT = str(Path(sys.executable).parent / "hadolint")

images = pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix[1:])


def test_there_are_two() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


@images
def test_hadolint_finds_nothing(path: Path) -> None:
    ran = subprocess.run(
        [HADOLINT, "--failure-threshold", "style", str(path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0 and not ran.stdout, ran.stdout + ran.stderr


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python:latest\nRUN apt-get install -y gcc\n")
    assert subprocess.run([HADOLINT, str(wrong)], capture_output=True, check=False).returncode != 0


@images
def test_stages_user_and_health(path: Path) -> None:
    base, build, final = of(path, "ARG")[0], *of(path, "FROM")
    name, _, version = base.text.removeprefix("BASE=").rpartition(":")
    assert name == "python" and version.count(".") == 2 and version.endswith("-slim-bookworm"), base.text
    assert (build.text, final.text) == ("${BASE} AS build", "${BASE}")
    users = [each.text for each in of(path, "USER", stage=2)]
    assert users == ["10001:10001"], "numeric, so that Kubernetes can see that it is not root"
    after = [each.word for each in read(path)][-6:]
    assert after[0] == "USER" and "RUN" not in after, "nothing is done as root after it"
    (health,) = of(path, "HEALTHCHECK")
    check = Instruction(2, "CMD", health.text.partition(" CMD ")[2]).words()
    compile(check[2], "health", "exec")
    assert of(path, "ENTRYPOINT")[0].words() == ["tini", "--"]
    assert of(path, "CMD")[0].words()[0] == "baton"


@images
def test_everything_that_is_installed_is_copied_and_nothing_else(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {word for each in of(path, "COPY", stage=1) for word in each.text.split()[:-1]}
    assert copied == packages | {"constraints.txt", "pyproject.toml", project["project"]["readme"]}
    assert all((ROOT / word).exists() for word in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == copied
    assert [each.text for each in of(path, "COPY", stage=2)] == ["--from=build /opt/baton /opt/baton"]


@images
def test_the_torch_of_the_image_is_one_that_the_project_takes(path: Path) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    torch = arguments(path).get("TORCH_VERSION", pins["torch"])
    assert tuple(map(int, torch.split("."))) >= (2, 11)


@images
def test_commands_are_of_kinds_that_are_exercised(path: Path) -> None:
    """A new kind of command must get its place in one of the tests below."""
    kinds = {(words[0].rpartition("/")[2], words[1]) for words in commands(path)}
    known = {("python", "-m"), ("pip", "install"), ("apt-get", "update"), ("apt-get", "install"), ("rm", "-rf")}
    assert kinds <= known | {("install", "-d"), ("sed", "-i")}, kinds


@images
def test_files_and_folders_are_made(path: Path, tmp_path: Path) -> None:
    """sed and install as they are, but for the folder (and the owner, which needs root)."""
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    for words in commands(path):
        match words:
            case ["install", "-d", "-o", owner, "-g", group, folder]:
                assert owner == group == "10001"
                subprocess.run(["install", "-d", f"{tmp_path}{folder}"], check=True)
                assert Path(f"{tmp_path}{folder}").is_dir()
            case ["sed", *_]:
                subprocess.run(with_arguments(path, words), cwd=tmp_path, check=True)
                pins = (tmp_path / "constraints.txt").read_text().splitlines()
                assert f"torch=={arguments(path)['TORCH_VERSION']}" in pins
                assert len(pins) == len((ROOT / "constraints.txt").read_text().splitlines())


def is_bookworm() -> bool:
    release = Path("/etc/os-release")
    return (
        release.is_file() and "VERSION_CODENAME=bookworm" in release.read_text() and shutil.which("apt-get") is not None
    )


@pytest.mark.slow
@images
@pytest.mark.skipif(not is_bookworm(), reason="the images are of Debian bookworm, this machine is not")
def test_debian_has_the_packages(path: Path) -> None:
    """apt resolves what the image installs, without installing it; asked only where apt's lists are there."""
    if not list(Path("/var/lib/apt/lists").glob("*Packages*")):
        pytest.skip("apt's lists are empty: apt-get update fills them")
    for words in commands(path):
        if words[:2] == ["apt-get", "install"]:
            ran = subprocess.run([*words, "--simulate"], capture_output=True, text=True, check=False)
            assert ran.returncode == 0, ran.stdout + ran.stderr
