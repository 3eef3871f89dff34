"""The README's Python code runs, and the commands and files it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grass_rs.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks run one after the other, as a reader would paste them."""
    assert len(BLOCKS) >= 3
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, block {number}", "exec"), names)  # noqa: S102 - our own README
    assert "most helpful" in capsys.readouterr().out
    assert (tmp_path / "train.grass" / "manifest.json").is_file()


def test_first_example_is_short() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert "grass.Attributor" in BLOCKS[0]
    assert len(lines) <= 20


def test_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    commands = set(re.findall(r"grass-rs (\w+)", README))
    assert {"demo", "inspect", "verify", "score"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as exited:
            main([command, "--help"])
        assert exited.value.code == 0
    assert "usage: grass-rs" in capsys.readouterr().out


def test_files_exist() -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert "CONTRIBUTING.md" in local
    for link in local:
        assert (ROOT / link).is_file(), link


def test_ci_runs_the_test_command() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert ci.index("make test") < ci.index("make lint")
