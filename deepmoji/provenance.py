"""What a result was made from, and what of a text may be shown: commit, code, locked data; no secrets."""

import hashlib
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

UNKNOWN = "unknown"

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


def code_digest() -> str:
    """SHA-256 over the Python files of this package, first 16 hex digits."""
    package = Path(__file__).parent
    total = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        total.update(f"{file.relative_to(package).as_posix()} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def _git(root: Path, *arguments: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def hide_secrets(text: str) -> str:
    """`text` without the passwords, keys and signatures that URLs carry."""
    return _SIGNED.sub(r"\1***", _USERINFO.sub("://***@", text))
