"""`python tools/audit.py`: are the packages that Baton is built from pinned, and does any have a known vulnerability?

Always, without a network: every package of this environment is pinned at its version in constraints.txt, and every
`pip install` of the Makefile and the Dockerfiles goes by that file. Then each pin is looked up in the database of known
vulnerabilities that PyPI serves (the JSON API). Where that cannot be reached it says NOT CHECKED, and with
--require-database that is a failure. Exit code 0 or 1.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
DATABASE = "https://pypi.org/pypi"
OWN = frozenset(("baton", "pip"))
TIMEOUT_S = 20.0


def normalized(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(text: str) -> dict[str, str]:
    """Name to version of a constraints file. Raises ValueError for a line that pins nothing."""
    pins = {}
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if line:
            name, equal, version = line.partition("==")
            if not equal or not version or "*" in version:
                raise ValueError(f"constraints.txt does not pin {line!r}")
            pins[normalized(name)] = version
    return pins


def unpinned(pins: dict[str, str], installed: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Complaints about what is installed otherwise than pinned; a local build tag (+cpu) is the same version."""
    for name, version in installed:
        wanted = pins.get(normalized(name))
        if normalized(name) in OWN or wanted == version.partition("+")[0]:
            continue
        yield f"{name} {version} is installed, constraints.txt says {wanted or 'nothing'}"


def free_installs(folder: Path) -> Iterator[str]:
    """Lines of the Makefile and the Dockerfiles that install from an index without constraints."""
    for path in (folder / "Makefile", *sorted((folder / "deploy" / "docker").glob("Dockerfile*"))):
        for line in path.read_text().replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|;", line):
                if re.search(r"\bpip3? install\b", command) and not re.search(r"(-c|--constraint)\b", command):
                    yield f"{path.name}: {command.strip()}"


def vulnerabilities(client: httpx.Client, pins: dict[str, str]) -> Iterator[str]:
    """What the database says of the pins. Raises httpx.HTTPError where there is none."""
    for name, version in pins.items():
        for each in client.get(f"{name}/{version}/json").raise_for_status().json()["vulnerabilities"]:
            fixed = ", ".join(each["fixed_in"]) or "no version yet"
            yield f"{name} {version}: {each['id']}, fixed in {fixed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is wrong. Returns the exit code."""
    flags = argparse.ArgumentParser(description="Check the packages that Baton is built from.")
    flags.add_argument("--database", default=DATABASE, help="base URL of PyPI's JSON API")
    flags.add_argument("--require-database", action="store_true", help="fail where it cannot be reached")
    arguments = flags.parse_args(argv)
    pins = pins_of((ROOT / "constraints.txt").read_text())
    found = [*unpinned(pins, _installed()), *free_installs(ROOT)]
    try:
        with httpx.Client(base_url=arguments.database, timeout=TIMEOUT_S) as client:
            found += vulnerabilities(client, pins)
        print(f"{len(pins)} pins looked up at {arguments.database}")
    except httpx.HTTPError as error:
        print(f"NOT CHECKED: known vulnerabilities of {len(pins)} pins, for {str(error).splitlines()[0]}")
        if arguments.require_database:
            found.append("the database of vulnerabilities could not be reached")
    for complaint in found:
        print(complaint, file=sys.stderr)
    return 1 if found else 0


def _installed() -> Iterator[tuple[str, str]]:
    for each in metadata.distributions():
        yield each.metadata["Name"], each.version


if __name__ == "__main__":
    sys.exit(main())
