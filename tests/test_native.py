"""The native module: what it offers, and how it behaves while it computes."""

from __future__ import annotations

import ast
import inspect
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import grass_rs as grass
from grass_rs import _native

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

PACKAGE = Path(grass.__file__).parent


def public_names(thing: ModuleType | type) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def used_names(tree: ast.AST) -> set[str]:
    """Return every NAME of code, not text, that says `_native.NAME` or imports it from there."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "grass_rs._native":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "_native":
            names.add(node.attr)
    return names


def test_every_native_name_is_used_by_the_package() -> None:
    assert used_names(ast.parse("'_native.derive'; derive; self._native.derive")) == set()
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    assert len(trees) > 5
    used = set().union(*map(used_names, trees))
    assert public_names(_native) - used == set()


def test_stub_lists_the_native_names() -> None:
    stub = ast.parse((PACKAGE / "_native.pyi").read_text(encoding="utf-8"))
    listed = {
        node.name for node in stub.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    } | {
        node.target.id
        for node in stub.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert {name for name in listed if not name.startswith("_")} == public_names(_native)


def test_native_things_are_documented() -> None:
    undocumented = [
        name
        for name in public_names(_native)
        if callable(getattr(_native, name)) and not inspect.getdoc(getattr(_native, name))
    ]
    assert undocumented == []


# The global interpreter lock, and Ctrl-C

HEAVY = """
import os, resource, signal, sys, threading
import numpy as np
import grass_rs as grass

def row(p):
    return np.ones((1, p), np.float32)

def repeated(n, p):  # no memory: every row is the same one
    return np.broadcast_to(row(p), (n, p))

def tokens(t, width):  # one example of many tokens, again without memory
    return np.broadcast_to(row(width)[None], (1, t, width))

# Each is minutes or hours of work, in little memory but for the mask, which keeps what it draws.
heavy = {
    "mask": lambda: grass.RandomMask(2**40, 5 * 2**26, seed=0).indices,
    "normal": lambda: grass.Gaussian(10**7, 10**6, seed=0)(row(10**7)),
    "rademacher": lambda: grass.Gaussian(10**7, 10**6, seed=0, kind="rademacher")(row(10**7)),
    "cyclic": lambda: grass.SJLT(10**7, 4, seed=0)(repeated(10**6, 10**7)),
    "iid": lambda: grass.SJLT(10**7, 4, seed=0, kind="iid")(repeated(10**6, 10**7)),
    "logra": lambda: grass.LoGra(64, 64, 64, 64, seed=0)(tokens(10**10, 64), tokens(10**10, 64)),
    "factgrass": lambda: grass.FactGraSS(64, 64, 2048, seed=0)(
        tokens(10**10, 64), tokens(10**10, 64)
    ),
    "tile": lambda: grass.TileSketch(64, 64, 2048, seed=0)(tokens(10**10, 64), tokens(10**10, 64)),
}
call = heavy[sys.argv[1]]
# A call that nothing stops is killed.
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
"""
HEAVY_CALLS = ["mask", "normal", "rademacher", "cyclic", "iid", "logra", "factgrass", "tile"]

ADVANCE = """
entering = threading.Event()

def work():
    entering.set()
    call()

worker = threading.Thread(target=work, daemon=True)
worker.start()
entering.wait()
# Far more turns than fit before the other thread has its turn and enters the call.
for turn in range(3_000_000):
    pass
assert worker.is_alive()  # still in the call
print("advanced", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("name", HEAVY_CALLS)
def test_other_python_threads_run_during_a_call(run_script: Callable[..., str], name: str) -> None:
    assert run_script(HEAVY + ADVANCE, name) == "advanced\n"


INTERRUPT = """
if sys.argv[2] == "handler":  # a signal that Python handles
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
else:
    # A run in the background ignores it, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    call()
except KeyboardInterrupt:
    again = grass.SJLT(4, 4, seed=0)(row(4))
    print("interrupted", again.shape)
else:
    print("finished")
"""


@pytest.mark.parametrize("way", ["handler", "interrupt"])
@pytest.mark.parametrize("name", HEAVY_CALLS)
def test_ctrl_c_stops_a_call(run_script: Callable[..., str], name: str, way: str) -> None:
    assert run_script(HEAVY + INTERRUPT, name, way) == "interrupted (1, 4)\n"


UNCAUGHT = """
import signal
import numpy as np
import grass_rs as grass
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.5)
grass.Gaussian(10**7, 10**6, seed=0)(np.ones((1, 10**7), np.float32))
print("finished")
"""


def test_interrupted_process_dies_of_the_interrupt() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.stdout == ""
