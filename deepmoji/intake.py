"""New tweets into the project: one more file below data/, a new version of data.dvc, and what the rules say of it."""

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from deepmoji import corpus, funnel
from deepmoji.emojis import load_labels
from deepmoji.errors import DeepMojiError, InputError
from deepmoji.stages import Project


def add(project: Project, file: Path, *, commit: bool = False) -> str:
    """Copy `file` into the project's tweets and have DVC note the new version; returns the message for git.

    The message holds the funnel that the file alone goes through, with the options of the section ingest; the corpus
    can lose more of it, to near-duplicates in other files. `commit` makes the commit, of data.dvc alone.
    InputError, and nothing is changed: no such file, its name is taken, nothing in it is usable, or the data is not
    the project's own. DeepMojiError: DVC or git refused; their words are in it.
    """
    options = project.params.section("ingest")
    tweets = project.data / str(options.pop("tweets"))
    if not file.is_file():
        raise InputError(f"{file} is not a file: name one file with emoji-bearing text.")
    if project.data.parent != project.root:
        raise InputError(f"The data is in {project.data}, outside the project: add it to the project that keeps it.")
    if not tweets.is_dir():
        raise InputError(f"{tweets} is not a folder, so no file can be added: make it one, or mend params.yaml.")
    target = tweets / file.name
    if target.exists():
        same = "with the same content" if filecmp.cmp(file, target, shallow=False) else "with other content"
        raise InputError(f"{target} is there already, {same}: rename the new file if it is new.")
    labels = load_labels(str(options.pop("labels")))
    with tempfile.TemporaryDirectory(prefix="deepmoji-") as folder:
        counts = corpus.ingest(file, Path(folder) / "corpus", labels=labels, **options)
    beside = project.root / f"{file.name}.tmp"  # not below data/, where a leftover would become data
    try:
        shutil.copyfile(file, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    with ExitStack() as undo:
        undo.callback(target.unlink)
        _call(project.root, "dvc", "add", "--quiet", str(project.data))
        undo.pop_all()
    head = f"Add {target.relative_to(project.root)}: {counts['rows_in']:,} rows in, {counts['rows_out']:,} out"
    message = f"{head}\n\n{funnel.describe(counts)}\n"
    if commit:
        pointer = f"{project.data}.dvc"
        _call(project.root, "git", "add", pointer)
        _call(project.root, "git", "commit", "--quiet", "-m", message, "--", pointer)
    return message


def _call(root: Path, program: str, *arguments: str) -> None:
    """Run a program of this environment or of the machine; DeepMojiError with its last words if it fails."""
    # Without activation the environment's commands are not on the PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(program, path=path)
    if found is None:
        raise DeepMojiError(f"The program {program} was not found: install it, or activate the environment.")
    done = subprocess.run([found, *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-300:]
        raise DeepMojiError(f"`{program} {arguments[0]}` failed ({words}): mend that and run it again.")
