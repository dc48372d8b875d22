"""What a result was made from, and what of a text may be shown: commit, code, locked data; no secrets."""

import ast
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
PACKAGE = Path(__file__).parent
LIBRARIES = ("numpy", "scikit-learn", "torch")
NO_NUMBERS = {"errors", "provenance"}  # modules that shape no result

_USERINFO = re.compile(r"://[^/@\s]+@")
_SIGNED = re.compile(r"(?i)([?&](?:[\w-]*(?:signature|token|credential|password|secret|key)[\w-]*|sig)=)[^&\s\"]+")


def provenance(root: Path) -> dict[str, str]:
    """What a run was made from: git commit and state, dvc.lock, code, and the flow run if there is one.

    A fact that cannot be found is the text "unknown", which no promotion gate accepts.
    `dirty` tells of changed or untracked files other than dvc.lock, which changes while the pipeline runs.
    """
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", ".", ":(exclude)dvc.lock")
    lock = root / "dvc.lock"
    return {
        "git_commit": commit or UNKNOWN,
        "git_dirty": UNKNOWN if changes is None else str(bool(changes)).lower(),
        "dvc_lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else UNKNOWN,
        "code": code_digest(),
        "flow_run": os.environ.get("PREFECT__FLOW_RUN_ID") or os.environ.get("DEEPMOJI_FLOW_RUN_ID") or "none",
    }


def digest(path: Path) -> str:
    """SHA-256 over the names and bytes of a file or of everything below a folder, first 16 hex digits."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            total.update(str(file.relative_to(path)).encode())
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def code_digest(*modules: str) -> str:
    """SHA-256 over the Python files of this package, or over those that `modules` run, first 16 hex digits."""
    files = [PACKAGE / f"{name}.py" for name in code_of(*modules)] if modules else PACKAGE.rglob("*.py")
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.relative_to(PACKAGE).as_posix()} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def made_by(*modules: str, libraries: Sequence[str] = ()) -> dict[str, Any]:
    """The code that `modules` run and the versions of libraries: where one has changed, what they made may change."""
    return {"code": code_digest(*modules), "libraries": {name: version(name) for name in (*LIBRARIES, *libraries)}}


@cache
def code_of(*modules: str) -> frozenset[str]:
    """`modules` of this package and all that they import, directly or not, but for types alone and NO_NUMBERS."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            parts = _imported((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
            waiting += [part for part in parts if (PACKAGE / f"{part}.py").is_file()]
    return frozenset(found - NO_NUMBERS)


def _imported(source: str) -> Iterator[str]:
    """What stands after `deepmoji.` in the imports of a module, at any depth."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
        elif isinstance(node, ast.ImportFrom) and node.module == "deepmoji":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("deepmoji."):
            yield str(node.module).removeprefix("deepmoji.")
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("deepmoji.") for alias in node.names)


def _git(root: Path, *arguments: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def hide_secrets(text: str) -> str:
    """`text` without the passwords, keys and signatures that URLs carry."""
    return _SIGNED.sub(r"\1***", _USERINFO.sub("://***@", text))
