"""Prefect's database as it is before the first flow, made once for an environment and copied to each project.

Prefect brings an empty database up to date in some hundred steps, which take longer than the stages of a small run.
`make environment` runs `python -m flows.database`; where that was not done, the first run takes those seconds longer.
"""

import os
import shutil
import sqlite3
import sys
import tempfile
import urllib.request
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from flows import temporary

NAME = "prefect.db"  # Prefect's own name for it, in PREFECT_HOME


def kept() -> Path:
    """Where the environment keeps it; another Prefect has another one."""
    return Path(sys.prefix) / "share" / "deepmoji" / f"prefect-{version('prefect')}.db"


def place(database: Path) -> None:
    """Copy what is kept to `database`, unless one is there or none is kept."""
    if database.exists() or not kept().is_file():
        return
    for part in ("-wal", "-shm"):  # what a database left that was deleted alone would be taken for this one's
        database.with_name(database.name + part).unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(dir=database.parent, prefix=f"{database.name}.") as beside:
        shutil.copyfile(kept(), beside.name)
        # Not where another process was quicker, and may have written to it since. Where there are no hard links
        # Prefect makes its own.
        with suppress(OSError):
            os.link(beside.name, database)


def keep() -> None:
    """Start a Prefect server over an empty database, end it, and keep what it made."""
    with tempfile.TemporaryDirectory() as name:
        for variable in [one for one in os.environ if one.startswith("PREFECT_")]:
            del os.environ[variable]  # somebody's server or database
        os.environ |= {"PREFECT_HOME": name, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        address, end = temporary.start()
        with urllib.request.urlopen(f"{address}/health", timeout=temporary.START_SECONDS):
            pass  # it is ready, and the database with it
        end()
        kept().parent.mkdir(parents=True, exist_ok=True)
        beside = kept().with_suffix(".tmp")
        beside.unlink(missing_ok=True)
        with closing(sqlite3.connect(Path(name) / NAME)) as made:
            made.execute("VACUUM INTO ?", [str(beside)])  # with what its log holds
        beside.replace(kept())


if __name__ == "__main__":
    keep()
