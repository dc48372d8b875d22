"""Data and its versions: a file added, the way back, experiments, and sets from another repository. DVC is real."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deepmoji import intake, tracking
from deepmoji.errors import UsageError
from deepmoji.intake import place_of
from deepmoji.stages import Project
from tests.conftest import ROOT, run_in, write_tiny_project

COMMIT = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qam")
# The road's first stage as it is, and a stand-in for training: the way back does not ask what a model is.
MODEL = {
    "cmd": "mkdir -p artifacts/pretrained && sha256sum artifacts/corpus/*.parquet > artifacts/pretrained/weights",
    "deps": ["artifacts/corpus"],
    "outs": ["artifacts/pretrained"],
}
NEW = "".join(f"what a wonderful day number {n} this is for me 😂\n" for n in range(30)) + "no emoji in this one\n"


def good(project: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    done = run_in(project, *command, variables=variables)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done


def repro(project: Path) -> None:
    done = run_in(project, "dvc", "repro", "-q")
    assert done.returncode == 0, (done.stdout, done.stderr)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, warm_stages: None) -> Path:
    """A tiny project in its first month: data and a model, all of it committed."""
    folder = write_tiny_project(tmp_path_factory.mktemp("project"))
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())
    road = {"stages": {"ingest": stages["stages"]["ingest"], "pretrain": MODEL}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(road, sort_keys=False))
    for name, value in (("user.name", "test"), ("user.email", "test@example.org")):
        good(folder, "git", "config", name, value)
    good(folder, "dvc", "add", "-q", "data")
    repro(folder)
    good(folder, "git", "add", "-A")
    good(folder, "git", "commit", "-qm", "First month")
    return folder


def content(project: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(project)): path.read_bytes()
        for top in ("data", "artifacts")
        for path in sorted((project / top).rglob("*"))
        if path.is_file()
    }


def test_two_commands_go_back_a_month(project: Path, tmp_path: Path) -> None:
    """A file is added and the road run again; then the data and the model of before are there, byte for byte."""
    before = content(project)
    new = tmp_path / "march.txt"
    new.write_text(NEW)
    done = good(project, "deepmoji", "data", "add", str(new), "--commit")
    message = good(project, "git", "log", "-1", "--format=%B").stdout
    assert message.strip() == done.stdout.strip()
    assert message.splitlines()[0].startswith("Add data/tweets/march.txt: 31 rows in, ")
    counts = {line[:16].strip(): line[16:].split()[0] for line in message.splitlines()[2:] if line[16:].strip()}
    assert counts["rows in"] == "31" and counts["- no_label"] == "1", message
    assert 0 < int(counts["rows out"]) <= 30
    assert good(project, "git", "show", "--stat", "--format=", "HEAD").stdout.split("|")[0].strip() == "data.dvc"
    assert (project / "data" / "tweets" / "march.txt").read_bytes() == new.read_bytes()
    repro(project)
    good(project, *COMMIT, "Second month")
    after = content(project)
    changed = {name for name in after if before.get(name) != after[name]}
    assert {"data/tweets/march.txt", "artifacts/pretrained/weights"} <= changed

    good(project, "git", "checkout", "-q", "HEAD~2")
    good(project, "dvc", "checkout", "-q")
    assert content(project) == before
    good(project, "git", "checkout", "-q", "-")
    good(project, "dvc", "checkout", "-q")
    assert content(project) == after


@pytest.mark.parametrize(
    ("name", "text", "code", "complaint"),
    [
        ("fresh.txt", "no emoji in any of these\nnor in this one\n", 1, "left no row for the corpus"),
        ("tweets-1.txt", NEW, 2, "holds other data of that name"),
        ("missing.txt", None, 1, "is not there"),
    ],
)
def test_a_file_that_cannot_be_added_changes_nothing(
    project: Path, tmp_path: Path, name: str, text: str | None, code: int, complaint: str
) -> None:
    taken = next((project / "data" / "tweets").iterdir()).name
    file = tmp_path / (taken if "of that name" in complaint else name)
    if text is not None:
        file.write_text(text)
    before = (project / "data.dvc").read_bytes(), content(project)
    done = run_in(project, "deepmoji", "data", "add", str(file))
    assert done.returncode == code
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("error: ") and complaint in sentence, done.stderr
    assert ((project / "data.dvc").read_bytes(), content(project)) == before


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (".", "holds the project's own tweets"),
        ("data", "holds the project's own tweets"),
        ("data/tweets", "holds the project's own tweets"),
        ("link", "holds the project's own tweets"),
        ("data/tweets/old", "the same data already"),
        ("data/tweets/old/first.txt", "is in .*tweets already"),
    ],
)
def test_the_tweets_are_not_added_to_themselves(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data" / "tweets" / "old").mkdir(parents=True)
    (tmp_path / "data" / "tweets" / "old" / "first.txt").write_text(NEW)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says) as caught:
        place_of(Project(tmp_path), Path(source))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", [(), ("--temp",)])
def test_an_experiment_lands_in_mlflow(project: Path, where: tuple[str, ...]) -> None:
    """Also one in a copy of the project that DVC deletes afterwards."""
    words = 2 + len(where)
    command = ("dvc", "exp", "run", *where, "--name", f"words{words}", "-S", f"ingest.min_words={words}", "ingest")
    good(project, *command, DEEPMOJI_PROJECT="")  # the copy is found by the working folder alone
    door = tracking.client(f"sqlite:///{project}/.state/mlflow/mlflow.db")
    experiment = door.get_experiment_by_name("ingest")
    assert experiment is not None
    runs = door.search_runs([experiment.experiment_id], f"tags.experiment = 'words{words}'")
    assert [(run.info.status, run.data.params["min_words"]) for run in runs] == [("FINISHED", str(words))]
    table = json.loads(good(project, "dvc", "exp", "show", "--json").stdout)
    assert f'"words{words}"' in json.dumps(table)
    good(project, "git", "checkout", "-q", "params.yaml", "dvc.lock")
    good(project, "dvc", "checkout", "-q")


def test_sets_are_imported_from_another_repository(project: Path, tmp_path: Path) -> None:
    """As the README tells: the import remembers where the sets came from, and an update brings their next version."""
    source = tmp_path / "sets"
    (source / "published").mkdir(parents=True)
    (source / "published" / "set.csv").write_text("text,label\nfine,1\n")
    for command in (
        ("git", "init", "-q"), ("dvc", "init", "-q"), ("dvc", "add", "-q", "published"), ("git", "add", "-A"),
        (*COMMIT, "One"),
    ):  # fmt: skip
        good(source, *command)
    good(project, "dvc", "import", "-q", str(source), "published", "-o", "published")
    assert (project / "published" / "set.csv").read_text() == "text,label\nfine,1\n"
    (source / "published" / "set.csv").write_text("text,label\nfine,1\nbad,0\n")
    good(source, "dvc", "add", "-q", "published")
    good(source, *COMMIT, "Two")
    good(project, "dvc", "update", "-q", "published.dvc")
    assert "bad" in (project / "published" / "set.csv").read_text()


def test_sources_to_leave_out_are_those_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = (ROOT / "params.yaml").read_text().replace("leave_out: []", "leave_out: [first]")
    (tmp_path / "params.yaml").write_text(params)
    (tmp_path / "data" / "tweets").mkdir(parents=True)
    (tmp_path / "data" / "tweets" / "first.txt").write_text(NEW)
    (tmp_path / "second.txt").write_text(NEW)
    monkeypatch.setattr(intake, "take", lambda *_, **__: None)
    assert intake.add(Project(tmp_path), tmp_path / "second.txt").startswith("Add data/tweets/second.txt: 31 rows in")
