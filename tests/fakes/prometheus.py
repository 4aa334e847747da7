"""Prometheus' own programs: Debian's package `prometheus`. CI installs it; elsewhere tests that need it say so."""

import os
import shutil

import pytest


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`. Without it the test is skipped with the reason, and fails in CI."""
    found = shutil.which(name)
    if found is None:
        message = f"{name} is not installed: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
