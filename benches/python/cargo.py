"""Programs of the benches that are written in Rust."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in the repository, and keep what it prints."""
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)  # noqa: S603


def build(program: str) -> str:
    """Build a program of the benches, and return its path."""
    built = run(
        *("cargo", "build", "--release", "--locked", "-p", "grass-benches"),
        *("--bin", program, "--message-format", "json"),
    )
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    (path,) = {message["executable"] for message in messages if message.get("executable")}
    return str(path)
