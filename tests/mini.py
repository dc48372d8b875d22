"""A project whose stages compute nothing, with results as if they had: its flows are real and take seconds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from deepmoji.corpus import ingest
from deepmoji.emojis import load_labels
from deepmoji.tokens import tokenize_corpus
from flows.pipeline import STAGES
from flows.warm import FOLDER
from tests.conftest import ROOT, USERS_OWN, commands
from tests.tiny import tiny_model
from tests.tweets import sentence

FLOWS = (sys.executable, "-m", "flows")
GATES = """\
minimum: {top5: 0.0}
maximum_drop: {}
required_tags: [git_commit]
same_data: data
significance: null
"""


def tweet(number: int, labels: int = 8) -> str:
    """A different English sentence for every number, words in no order, with one of so many emojis."""
    return f"{sentence(number * 7919 % 17**4)} {load_labels('emojis64').names[number % labels]}"


def write_mini_project(folder: Path) -> Path:
    """A git and DVC repository with corpus, tokens, a pretrained model and the numbers of every stage."""
    for name in ("params.yaml", "prefect.yaml"):
        shutil.copy2(ROOT / name, folder / name)
    (folder / "mlflow").mkdir()
    (folder / "mlflow" / "promotion.yaml").write_text(GATES)
    stages: dict[str, dict[str, object]] = {
        stage: {"cmd": f"echo {stage} >> ran.txt", "always_changed": True} for stage in STAGES
    }
    stages["finetune"]["matrix"] = {"dataset": ["sample-sentiment"], "method": ["new"]}
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["datasets"]["names"], params["finetune"]["methods"] = ["sample-sentiment"], ["new"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (folder / ".gitignore").write_text(".state/\nartifacts/\nran.txt\n/data\n")
    tweets = folder / "data" / "tweets"
    tweets.mkdir(parents=True)
    (tweets / "first.txt").write_text("".join(f"{tweet(number)}\n" for number in range(800)), encoding="utf-8")
    artifacts = folder / "artifacts"
    ingest(tweets, artifacts / "corpus", labels=load_labels("emojis64"), eval_per_label=20)
    tokenize_corpus(artifacts / "corpus", artifacts / "tokens", vocabulary_size=500, min_count=1, max_length=20)
    write_model(folder, seed=1)
    numbers = {stage: {"rows": 1.0} for stage in STAGES} | {"pretrain": {"top1": 0.1, "top5": 0.4, "loss": 4.0}}
    scores = {method: {"mean": 0.5} for method in ("new", "chain-thaw")}
    (artifacts / "metrics").mkdir()
    for stage, values in (numbers | {"benchmark": {"sample": scores}}).items():
        (artifacts / "metrics" / f"{stage}.json").write_text(json.dumps(values))
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in ((*git, "init", "-q"), ("dvc", "init", "-q"), (*git, "add", "-A"), (*git, "commit", "-qm", "Mini")):
        assert run(folder, *command).returncode == 0
    return folder


def ran(folder: Path) -> list[str]:
    """The stages of the last whole run in their order; the two that run side by side come as in STAGES."""
    names = (folder / "ran.txt").read_text().split()[-len(STAGES) :]
    return sorted(names[:2], key=STAGES.index) + names[2:]


def write_model(folder: Path, seed: int) -> None:
    """Another model, as if the pipeline had trained it."""
    shutil.rmtree(folder / "artifacts" / "pretrained", ignore_errors=True)
    tiny_model(folder / "artifacts" / "pretrained", load_labels("emojis64").names, seed=seed)


def surroundings(folder: Path) -> dict[str, str]:
    """This process's environment without the user's own servers, for a project at `folder` and the code under test."""
    own = (*USERS_OWN, "DEEPMOJI")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own) or name == FOLDER}
    return kept | {
        "PATH": commands(),
        "DEEPMOJI_PROJECT": str(folder),
        "PYTHONPATH": str(ROOT),
    }


def run(folder: Path, *command: str, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=surroundings(folder) | variables, capture_output=True, text=True, timeout=timeout
    )
