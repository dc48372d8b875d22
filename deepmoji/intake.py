"""New tweets into the project: one more file or folder below data/, and a new version of data.dvc."""

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
from deepmoji.errors import DeepMojiError, InputError, UsageError
from deepmoji.readers import list_files
from deepmoji.stages import Project


def add(project: Project, source: Path, *, commit: bool = False) -> str:
    """Take a file or folder into the project's tweets, as a new version of data/; returns the message for git.

    The message holds the funnel that the new tweets alone go through, with the options of the section ingest; the
    corpus can lose more of them, to near-duplicates in other files. `commit` makes the commit, of data.dvc alone.
    InputError, and nothing is changed: nothing in it is usable, or the data is not the project's own. UsageError: see
    `place_of`. DeepMojiError: DVC or git refused; their words are in it.
    """
    if project.data.parent != project.root:
        raise InputError(f"The data is in {project.data}, outside the project: add it to the project that keeps it.")
    target = place_of(project, source)
    options = project.params.section("ingest")
    del options["tweets"], options["leave_out"]  # of the project's own folder
    labels = load_labels(str(options.pop("labels")))
    with tempfile.TemporaryDirectory(prefix="deepmoji-") as folder:
        counts = corpus.ingest(source, Path(folder) / "corpus", labels=labels, **options)
    take(project, source, target, version=True)
    head = f"Add {target.relative_to(project.root)}: {counts['rows_in']:,} rows in, {counts['rows_out']:,} out"
    message = f"{head}\n\n{funnel.describe(counts)}\n"
    if commit:
        pointer = f"{project.data}.dvc"
        _call(project.root, "git", "add", pointer)
        _call(project.root, "git", "commit", "--quiet", "-m", message, "--", pointer)
    return message


def place_of(project: Project, source: Path) -> Path:
    """Where a file or folder of tweets goes.

    InputError: it holds no texts, or the project has no folder of tweets. UsageError: the project's tweets are one
    file, hold something of that name, hold the source, or are in it.
    """
    tweets = project.data / project.params.ingest.tweets
    if tweets.is_file():
        raise UsageError(f"{tweets} is one file, and new data is added to a folder: name a folder as ingest.tweets.")
    if not tweets.is_dir():
        raise InputError(f"{tweets} is not there, so nothing can be added: make the folder, or mend params.yaml.")
    list_files(source)
    inside, place = tweets.resolve(), source.resolve()
    if inside.is_relative_to(place):  # a copy of a folder into itself has no end
        raise UsageError(f"{source} holds the project's own tweets, {tweets}: name data from outside of that folder.")
    target = tweets / place.name
    if target.exists():
        if _same(source, target):
            raise UsageError(f"{target} holds the same data already: run the pipeline to train on it.")
        raise UsageError(f"{target} holds other data of that name: give the new data another name.")
    if place.is_relative_to(inside):
        raise UsageError(f"{source} is in {tweets} already: run the pipeline to train on it.")
    return target


def take(project: Project, source: Path, target: Path, *, version: bool) -> None:
    """Copy new tweets to their place, whole or not at all; `version`: and have DVC note the new version of data/."""
    beside = target.with_name(f".{target.name}.tmp")  # hidden: no reader takes it for data
    with ExitStack() as undo:
        undo.callback(_remove, beside)
        _remove(beside)
        if source.is_dir():
            shutil.copytree(source, beside)
        else:
            shutil.copyfile(source, beside)
        beside.replace(target)
        undo.callback(_remove, target)
        if version:
            _call(project.root, "dvc", "add", "--quiet", str(project.data))
        undo.pop_all()


def _same(source: Path, target: Path) -> bool:
    if source.is_file() or target.is_file():
        return source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False)
    names = [sorted(p.relative_to(folder) for p in list_files(folder)) for folder in (source, target)]
    return names[0] == names[1] and all(filecmp.cmp(source / name, target / name, shallow=False) for name in names[0])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
