"""The command line: output, exit codes and one-line errors of every subcommand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import grass_rs as grass
from grass_rs.cli import main as command_line
from grass_rs.cli.main import main
from grass_rs.store import EXPORT_FORMATS, Repaired

RNG = np.random.default_rng(9)
TRAIN = RNG.standard_normal((30, 12)).astype(np.float32)
QUERIES = RNG.standard_normal((4, 12)).astype(np.float32)
TRAIN_IDS = np.arange(100, 130)
QUERY_IDS = np.arange(7, 11)


def make_store(path: Path, rows: np.ndarray, ids: np.ndarray) -> Path:
    sketch, mask = grass.SJLT(40, 8, seed=1), grass.RandomMask(20, 4, seed=2)
    columns = [
        grass.Column("hidden", 0, 8, sketch.spec),
        grass.Column("", 8, 4, mask.spec),
    ]
    with grass.create_store(path, columns, fingerprints={"plan": "p" * 64}) as writer:
        writer.append(rows, ids)
        writer.finish()
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return make_store(tmp_path / "train.grass", TRAIN, TRAIN_IDS)


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    return make_store(tmp_path / "queries.grass", QUERIES, QUERY_IDS)


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    command = [sys.executable, "-m", "grass_rs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_explains_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ["demo", "inspect", "verify", "repair", "merge", "export", "score", "self-influence"]
    commands.append("tune")
    for arguments in ([], *([command] for command in commands)):
        with pytest.raises(SystemExit) as exited:
            main([*arguments, "--help"])
        assert exited.value.code == 0
        out = capsys.readouterr().out
        assert (f"example: grass-rs {arguments[0]}" if arguments else "Exit codes: 0") in out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["inspect"],
        ["score", "only-one"],
        ["score", "a", "b", "--method", "cosine"],
        ["score", "a", "b", "--top", "0"],
        ["score", "a", "b", "--damping", "much"],
        ["self-influence", "a", "--top", "0"],
        ["tune"],
        ["repair"],
        ["merge", "a"],
        ["merge", "--out", "b"],
        ["export", "a", "--format", "npy"],
        ["export", "a", "--out", "b", "--format", "csv"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", str(2**64)],
        ["demo", "--seed", "one"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: grass-rs" in captured.err


def test_inspect_json(train: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(train), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    store = grass.open_store(train)
    sizes = {file.name: file.stat().st_size for file in train.glob("[!.]*")}
    assert facts == {
        "path": str(train),
        "complete": True,
        "writers": 1,
        "finished_writers": [],
        "rows": 30,
        "skipped": 0,
        "dtype": "float32",
        "width": 12,
        "bytes": sum(sizes.values()),
        "files": sizes,
        "fingerprints": {"plan": "p" * 64},
        "columns": [
            {"name": c.name, "offset": c.offset, "width": c.width, "spec": c.spec}
            for c in store.columns
        ],
    }


def test_inspect_text(train: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(train)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{train}: complete, 30 rows of 12 float32"
    assert any(line.split()[:3] == ["hidden", "0..8", "sjlt"] for line in lines)
    assert any(line.split()[:3] == ["(root)", "8..12", "random_mask"] for line in lines)
    assert any("seed=1" in line for line in lines)


def test_inspect_an_unfinished_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.grass"
    columns = [grass.Column("layer", 0, 12, grass.SJLT(40, 12, seed=1).spec)]
    with grass.create_store(path, columns) as writer:
        writer.append(TRAIN[:5], TRAIN_IDS[:5])
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "unfinished, 5 rows" in out
    assert "\nwriters: 1, finished: none\n" in out


def test_inspect_shows_nothing_that_a_terminal_would_obey(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = grass.Column("red\x1b[31m\nfake: line", 0, 3, {"type": "a\tb", "of": {"\u202e": 1}})
    fingerprints = {"plan\r": "\x00"}
    with grass.create_store(tmp_path / "s", [column], fingerprints=fingerprints) as writer:
        writer.append(np.ones((1, 3)), [0])
        writer.finish()
    (tmp_path / "s" / ".hidden").touch()
    assert main(["inspect", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert "red\\x1b[31m\\nfake: line" in out
    assert "plan\\r" in out
    assert "\\x00" in out
    assert "hidden" not in out


def test_verify(train: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(train)]) == 0
    assert "30 rows" in capsys.readouterr().out
    rows = train / "shard-00000.rows"
    damaged = bytearray(rows.read_bytes())
    damaged[-1] ^= 1
    rows.write_bytes(damaged)
    assert main(["verify", str(train)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("grass-rs: ")
    assert "shard 0" in captured.err


def test_score_prints_the_best(
    train: Path, queries: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(train), str(queries), "--method", "graddot", "--top", "3"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split("\t") == ["query", "rank", "train", "score"]
    expected = QUERIES @ TRAIN.T
    cells = [line.split("\t") for line in lines]
    assert len(cells) == 4 * 3
    for position, (query, rank, number, value) in enumerate(cells):
        row, place = divmod(position, 3)
        best = np.argsort(-expected[row])[place]
        assert (int(query), int(rank), int(number)) == (QUERY_IDS[row], place + 1, TRAIN_IDS[best])
        np.testing.assert_allclose(float(value), expected[row, best], rtol=1e-5)


def test_score_shows_ten_or_all_there_are(
    train: Path, queries: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(train), str(queries)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4 * 10
    assert main(["score", str(queries), str(train)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 30 * 4


@pytest.mark.parametrize("damping", [0.4, 2.0])
def test_score_writes_a_file(
    train: Path, queries: Path, damping: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.npz"
    options = ["--damping", str(damping), "--out", str(out)]
    assert main(["score", str(train), str(queries), *options]) == 0
    assert str(out) in capsys.readouterr().out
    saved = grass.Scores.load(out)
    expected = grass.open_store(train).score(grass.open_store(queries), damping=damping)
    np.testing.assert_array_equal(saved.values, expected.values)
    np.testing.assert_array_equal(saved.ids, TRAIN_IDS)
    assert (saved.method, saved.damping) == ("influence", damping)
    assert main(["score", str(train), str(queries), *options, "--top", "2"]) == 0
    assert grass.Scores.load(out).ids.shape == (4, 2)


def test_score_streams_into_an_npy_file(
    train: Path, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.npy"
    command = ["score", str(train), str(queries), "--damping", "0.2", "--out", str(out)]
    assert main([*command, "--progress"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{out}: scores (4, 30), a row a query of {queries}",
        f"{tmp_path / 'scores.ids.npy'}: ids of the columns",
    ]
    assert "score train.grass: 100%" in captured.err
    expected = grass.open_store(train).score(grass.open_store(queries), damping=0.2)
    np.testing.assert_array_equal(np.load(out), expected.values)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.ids.npy"), TRAIN_IDS)
    assert main([*command, "--top", "3"]) == 1
    assert "writes all scores" in capsys.readouterr().err


@pytest.mark.parametrize("top", [3, 50])
def test_self_influence_lists_the_largest(
    train: Path, capsys: pytest.CaptureFixture[str], top: int
) -> None:
    assert main(["self-influence", str(train), "--top", str(top), "--damping", "0.7"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split("\t") == ["rank", "train", "score"]
    values = grass.open_store(train).self_influence(0.7)
    order = np.argsort(-values)[:top]
    cells = [line.split("\t") for line in lines]
    assert [int(rank) for rank, _, _ in cells] == list(range(1, min(top, 30) + 1))
    assert [int(train) for _, train, _ in cells] == TRAIN_IDS[order].tolist()
    np.testing.assert_allclose([float(value) for *_, value in cells], values[order], rtol=1e-6)


@pytest.mark.parametrize(("lost", "unknown"), [([3, 17, 2**64 - 1], 2), ([], 0)])
def test_repair_prints_what_to_cache_again(
    train: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lost: list[int],
    unknown: int,
) -> None:
    dropped = len(lost) + unknown

    def repaired(path: str) -> Repaired:
        assert path == str(train)
        return Repaired(30, dropped, np.array(lost, np.uint64), unknown)

    monkeypatch.setattr(command_line.stores, "repair_store", repaired)
    assert main(["repair", str(train)]) == 0
    first, *more = capsys.readouterr().out.splitlines()
    assert first == f"{train}: dropped {dropped} rows, kept 30"
    assert len(more) == (2 if lost else 0)
    if lost:
        assert more[0] == f"cache again: 3 17 {2**64 - 1}"
        assert more[1].startswith("lost with their ids: 2 rows")
    assert main(["repair", str(train), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "dropped_rows": dropped,
        "kept_rows": 30,
        "lost_ids": lost,
        "unknown_ids": unknown,
    }


def test_merge_makes_one_store(
    train: Path, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged.grass"
    assert main(["merge", str(train), str(queries), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 34 rows of 2 stores\n"
    store = grass.open_store(out)
    np.testing.assert_array_equal(store[store.find(QUERY_IDS)], QUERIES)


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet"])
def test_export_writes_a_file(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    out = tmp_path / "train.npy"
    assert main(["export", str(train), "--out", str(out), "--format", kind]) == 0
    size = out.stat().st_size
    assert capsys.readouterr().out == f"{out}: {kind} of {train}, {size:,} bytes\n"
    expected = tmp_path / "expected.npy"
    grass.export_store(train, expected, kind)
    assert out.read_bytes() == expected.read_bytes()


def test_export_says_what_is_missing(
    train: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "train.parquet"
    assert main(["export", str(train), "--out", str(out), "--format", "parquet"]) == 1
    assert capsys.readouterr().err == (
        "grass-rs: export to parquet needs pyarrow, which is not here: "
        "pip install 'grass_rs[parquet]'\n"
    )


STORE_ARGUMENTS = [
    ["inspect", "{}"],
    ["verify", "{}"],
    ["repair", "{}"],
    ["merge", "{}", "--out", "out"],
    ["merge", "train.grass", "{}", "--out", "out"],
    ["export", "{}", "--out", "out", "--format", "npy"],
    ["score", "{}", "train.grass"],
    ["score", "train.grass", "{}"],
    ["self-influence", "{}"],
]
OUT_ARGUMENTS = [
    ["merge", "train.grass", "--out", "{}"],
    *(["export", "train.grass", "--out", "{}", "--format", kind] for kind in EXPORT_FORMATS),
    ["score", "train.grass", "train.grass", "--out", "{}.npy"],
    ["score", "train.grass", "train.grass", "--method", "graddot", "--out", "{}.npz"],
]
BAD_STORES = ["nowhere", "nowhere/at all", "empty", "file", "file/inside", "two\nlines", ""]
BAD_OUTS = ["nowhere/out", "file/inside", "two\nlines/out"]


@pytest.mark.parametrize(
    "arguments",
    [
        [word.replace("{}", path) for word in command]
        for commands, paths in [(STORE_ARGUMENTS, BAD_STORES), (OUT_ARGUMENTS, BAD_OUTS)]
        for command in commands
        for path in paths
    ],
)
def test_a_wrong_path_is_one_line(
    arguments: list[str],
    train: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(train.parent)
    (train.parent / "empty").mkdir()
    (train.parent / "file").write_text("mine")
    before = sorted(train.parent.rglob("*"))
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("grass-rs: ")
    assert captured.err.count("\n") == 1
    assert sorted(train.parent.rglob("*")) == before


FORBIDDEN = """
# Commands import some of these when they run, and nobody may not read them everywhere.
import difflib, locale, os, shutil, sys, tempfile, threading, zipfile
from grass_rs.cli.main import main

store = sys.argv[1]
parent = os.path.dirname(store)
if os.geteuid() == 0:
    os.seteuid(65534)  # root may do anything, nobody may not
read = [
    ["inspect", store],
    ["verify", store],
    ["repair", store],
    ["merge", store, "--out", parent + "/out"],
    ["export", store, "--out", parent + "/out", "--format", "npy"],
    ["score", store, store],
    ["score", store, store, "--out", parent + "/out.npy"],
]
for arguments in read if sys.argv[2] == "read" else read[2:5] + read[6:]:
    sys.stderr.write(f"{main(arguments)} ")
"""


@pytest.mark.parametrize("access", ["read", "write"])
def test_a_forbidden_path_is_one_line(access: str) -> None:
    # Not a folder of pytest's: those are closed to other users altogether.
    folder = Path(tempfile.mkdtemp())
    try:
        store = make_store(folder / "s", TRAIN, TRAIN_IDS)
        for file in (*store.iterdir(), store, folder):
            file.chmod(0o555 if file.is_dir() else 0o444)
        if access == "read":
            (store / "manifest.json").chmod(0o000)
        command = [sys.executable, "-c", FORBIDDEN, str(store), access]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(folder)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    *lines, last = done.stderr.splitlines()
    assert last == "1 "
    assert len(lines) == (7 if access == "read" else 4)
    assert all("grass-rs: " in line and str(folder) in line for line in lines)


def test_a_full_stdout_is_one_line(train: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        command = [sys.executable, "-m", "grass_rs", "inspect", str(train)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("grass-rs: ")
    assert done.stderr.count("\n") == 1


def test_an_unwritable_file_is_one_line(
    train: Path, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "no folder" / "scores.npz"
    assert main(["score", str(train), str(queries), "--out", str(out)]) == 1
    assert "no folder" in capsys.readouterr().err
    assert main(["demo", "--out", str(out)]) == 1
    assert "choose another with --out" in capsys.readouterr().err


@pytest.mark.parametrize("absent", ["torch", "sklearn"])
def test_demo_says_what_is_missing(absent: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules['{absent}'] = None; from grass_rs.cli.main import main; "
        f"sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"grass-rs: demo needs {absent}, which is not here: pip install 'grass_rs[torch,report]'\n"
    )


def test_a_reader_that_leaves_is_no_error(train: Path) -> None:
    command = [sys.executable, "-m", "grass_rs", "inspect", str(train)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_ctrl_c_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], train: Path
) -> None:
    def interrupted(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command_line.stores, "_verify", interrupted)
    # A run in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["verify", str(train)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "grass-rs: interrupted\n"


def test_commands_about_stores_load_no_torch(train: Path, queries: Path) -> None:
    code = (
        "import sys; from grass_rs.cli.main import main\n"
        f"main(['inspect', {str(train)!r}]); main(['score', {str(train)!r}, {str(queries)!r}])\n"
        f"main(['tune', {str(train)!r}])\n"
        "assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), "--store", str(tmp_path / "s")]) == 1
    assert "expects a file for --out" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_names_that_the_terminal_cannot_write_are_escaped(tmp_path: Path) -> None:
    column = grass.Column("schicht-\u03b2", 0, 3, {})
    with grass.create_store(tmp_path / "s", [column]) as writer:
        writer.append(np.ones((1, 3)), [0])
        writer.finish()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run("inspect", tmp_path / "s", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "schicht-\\u03b2" in done.stdout
