"""The whole road on a tiny corpus: real Prefect server, real DVC in a repository of its own, real MLflow on sqlite.

The tests build on each other, in this order, as a user's days do.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL

from tests.conftest import TINY_GATES, network_notes, run_in

FLOWS = (sys.executable, "-m", "flows")
STAGES = ("ingest", "datasets", "validate", "tokenize", "pretrain", "finetune", "benchmark")


def change(project: Path, section: str, **values: object) -> None:
    path = project / "params.yaml"
    content = yaml.safe_load(path.read_text())
    content[section] |= values
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def changed_stages(project: Path) -> set[str]:
    """What `dvc status` would run again by itself; what only depends on such a stage is not named."""
    done = run_in(project, "dvc", "status", "--json")
    assert done.returncode == 0, done.stderr
    return {name.split("@")[0] for name in json.loads(done.stdout)}


def last_screen(text: str) -> dict[str, tuple[int, int]]:
    """stage -> (run, up to date), from the table that a run ends with."""
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: (int(row[1]), int(row[2])) for row in rows if len(row) == 4 and row[0] in STAGES}


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence for the user, among the lines of Prefect's log."""
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.stderr[-3000:]
    return sentences[0]


@pytest.fixture(scope="module")
def refused(tiny_project: Path) -> subprocess.CompletedProcess[str]:
    """The first run: everything is made, then a gate that nothing passes."""
    gates = tiny_project / "mlflow" / "promotion.yaml"
    gates.write_text(TINY_GATES.replace("top5: 0.0", "top5: 0.99"))
    done = run_in(tiny_project, *FLOWS, "pipeline")
    gates.write_text(TINY_GATES)
    return done


@pytest.fixture(scope="module")
def promoted(
    tiny_project: Path, refused: subprocess.CompletedProcess[str], warm_stages: None
) -> subprocess.CompletedProcess[str]:
    """The second run, with gates that let the model pass."""
    return run_in(tiny_project, *FLOWS, "pipeline")


def test_a_gate_refuses_and_names_the_number(tiny_project: Path, refused: subprocess.CompletedProcess[str]) -> None:
    assert refused.returncode == 1, refused.stderr[-3000:]
    sentence = mistake(refused)
    assert "top5" in sentence
    assert "0.99" in sentence
    lock = yaml.safe_load((tiny_project / "dvc.lock").read_text())["stages"]
    assert {name.split("@")[0] for name in lock} == set(STAGES)


def test_the_next_run_does_nothing_twice_and_promotes(promoted: subprocess.CompletedProcess[str]) -> None:
    assert promoted.returncode == 0, promoted.stderr[-3000:]
    screen = last_screen(promoted.stdout)
    assert set(screen) == set(STAGES)
    assert all(ran == 0 and unchanged >= 1 for ran, unchanged in screen.values())
    assert "Champion: deepmoji version 1" in promoted.stdout
    assert "make ui" in promoted.stdout


@pytest.mark.usefixtures("promoted")
def test_a_typed_repro_agrees_that_nothing_is_left(tiny_project: Path) -> None:
    before = (tiny_project / "dvc.lock").read_bytes()
    done = run_in(tiny_project, "dvc", "repro")
    assert done.returncode == 0
    assert "Data and pipelines are up to date" in done.stdout
    assert (tiny_project / "dvc.lock").read_bytes() == before


@pytest.mark.usefixtures("promoted")
def test_dvc_shows_numbers_and_plots(tiny_project: Path) -> None:
    done = run_in(tiny_project, "dvc", "metrics", "show", "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)[""]["data"]
    assert {Path(name).stem for name in files} == set(STAGES) - {"finetune"}
    scores = files["artifacts/metrics/benchmark.json"]["data"]["sample-sentiment"]
    done = run_in(tiny_project, "dvc", "plots", "show", "--json", "-o", ".state/plots")
    assert done.returncode == 0, done.stderr
    plots = json.loads(done.stdout)["data"]
    assert set(plots) == {"artifacts/benchmark/means.csv", "artifacts/pretrained/metrics.json"}
    (bars,) = plots["artifacts/benchmark/means.csv"]
    assert {row["row"]: float(row["mean"]) for row in bars["content"]["data"]["values"]} == {
        f"sample-sentiment: {method}": pytest.approx(numbers["mean"]) for method, numbers in scores.items()
    }


@pytest.mark.usefixtures("promoted")
def test_the_champion_answers(tiny_project: Path) -> None:
    done = run_in(tiny_project, "deepmoji", "predict", "--format", "json", "I love mom's cooking", "")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(answer["labels"]) for answer in answers] == [5, 5]
    assert "deepmoji" in done.stderr
    script = "import deepmoji; print(deepmoji.load('models:/deepmoji@champion').predict(['hi'], top_k=2)[0][0].label)"
    done = run_in(tiny_project, sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) in (1, 2)


@pytest.mark.usefixtures("promoted")
def test_the_road_stays_on_this_machine(tiny_project: Path, tmp_path: Path) -> None:
    assert network_notes(tiny_project).read_text() == ""
    code = "import urllib.request; urllib.request.urlopen('http://example.org')"
    done = run_in(tiny_project, sys.executable, "-c", code, variables={"DEEPMOJI_TRIED": str(tmp_path / "notes")})
    assert "tests use no network: example.org" in done.stderr
    assert (tmp_path / "notes").read_text() == "example.org\n"


@pytest.mark.usefixtures("promoted")
def test_runs_are_in_mlflow_with_their_origin(tiny_project: Path) -> None:
    script = (
        "import json, sys; from pathlib import Path; from deepmoji import tracking\n"
        "door = tracking.client(tracking.prepare(Path(sys.argv[1])))\n"
        "names = {e.name: e.experiment_id for e in door.search_experiments()}\n"
        "print(json.dumps({n: [[r.info.status, r.data.tags, len(r.data.params), len(r.data.metrics),"
        " len(r.inputs.dataset_inputs)] for r in door.search_runs([i])] for n, i in names.items()}))"
    )
    done = run_in(tiny_project, sys.executable, "-c", script, str(tiny_project))
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)
    for stage in STAGES:
        assert runs[stage], stage
        for status, tags, _, _, _ in runs[stage]:
            assert status == "FINISHED"
            assert len(tags["git_commit"]) == 40
            assert tags["flow_run"] not in ("", "none")
            assert tags["dvc_lock"]
    children = [run for run in runs["finetune"] if "mlflow.parentRunId" in run[1]]
    assert {(run[1]["dataset"], run[1]["method"], run[1]["seed"]) for run in children} == {
        ("sample-sentiment", "new", "1"),
        ("sample-sentiment", "chain-thaw", "1"),
    }
    assert all(run[3] > 0 for run in children)
    baselines = [run for run in runs["benchmark"] if "mlflow.parentRunId" in run[1]]
    assert {(run[1]["dataset"], run[1]["method"]) for run in baselines} == {("sample-sentiment", "majority")}
    assert all(run[3] > 0 for run in baselines)
    assert all(run[4] == 1 for run in runs["pretrain"])


@pytest.mark.usefixtures("promoted")
def test_a_parameter_runs_only_what_depends_on_it(tiny_project: Path) -> None:
    for section, key, value, stage in [
        ("benchmark", "bootstrap", 21, "benchmark"),
        ("finetune", "patience", 2, "finetune"),
        ("pretrain", "learning_rate", 0.02, "pretrain"),
    ]:
        before = (tiny_project / "params.yaml").read_text()
        change(tiny_project, section, **{key: value})
        assert changed_stages(tiny_project) == {stage}
        (tiny_project / "params.yaml").write_text(before)
    assert changed_stages(tiny_project) == set()


@pytest.mark.usefixtures("promoted")
def test_a_clone_pulls_and_is_up_to_date(tiny_project: Path, tmp_path: Path) -> None:
    commit = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "Lock"]
    assert run_in(tiny_project, "dvc", "add", "-q", "data").returncode == 0
    for command in (["dvc", "push", "-q"], ["git", "add", "-A"], commit):
        done = run_in(tiny_project, *command)
        assert done.returncode == 0, done.stderr
    clone = tmp_path / "clone"
    assert run_in(tiny_project, "git", "clone", "-q", ".", str(clone)).returncode == 0
    remote = str(tiny_project / ".state" / "dvc-remote")
    assert run_in(clone, "dvc", "remote", "modify", "--local", "local", "url", remote).returncode == 0
    done = run_in(clone, "dvc", "pull", "-q")
    assert done.returncode == 0, done.stderr
    assert changed_stages(clone) == set()
    done = run_in(clone, "dvc", "repro")
    assert "Data and pipelines are up to date" in done.stdout


@pytest.mark.usefixtures("promoted")
def test_the_same_bytes_come_out_again(tiny_project: Path) -> None:
    """From ingest to the pretrained model and a fine-tune, made again without the cache: the same hashes."""
    before = yaml.safe_load((tiny_project / "dvc.lock").read_text())["stages"]
    again = ("dvc", "repro", "--force", "--no-run-cache", "finetune@sample-sentiment-chain-thaw")
    done = run_in(tiny_project, *again)
    assert done.returncode == 0, done.stderr
    after = yaml.safe_load((tiny_project / "dvc.lock").read_text())["stages"]
    assert {name: stage.get("outs") for name, stage in after.items()} == {
        name: stage.get("outs") for name, stage in before.items()
    }


@pytest.mark.usefixtures("promoted")
def test_a_killed_stage_never_looks_finished_and_goes_on(tiny_project: Path) -> None:
    before = {name: (tiny_project / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
    change(tiny_project, "pretrain", epochs=4, checkpoint_seconds=0)
    command = [str(Path(sys.executable).parent / "dvc"), "repro", "--single-item", "pretrain"]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(tiny_project),
    }

    def states() -> list[Path]:
        return list((tiny_project / ".state" / "checkpoints").glob("pretrain-*/state.safetensors"))

    with subprocess.Popen(
        command, cwd=tiny_project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 100
        while not states() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert len(states()) == 1
    assert not (tiny_project / "artifacts" / "pretrained").exists()
    assert "pretrain" in changed_stages(tiny_project)
    done = run_in(tiny_project, "dvc", "repro", "--single-item", "pretrain")
    assert done.returncode == 0, done.stderr
    assert "going on at step" in done.stdout + done.stderr
    assert (tiny_project / "artifacts" / "pretrained" / "config.json").is_file()
    for name, content in before.items():
        (tiny_project / name).write_bytes(content)
    assert run_in(tiny_project, "dvc", "checkout", "-q").returncode == 0
    assert changed_stages(tiny_project) == set()


@pytest.mark.usefixtures("promoted", "server")
@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("validate", {"min_per_label": 100000}, r"The stage validate failed: .*label"),
        ("ingest", {"labels": "nope"}, r"The stage ingest failed: There is no label set or file 'nope'"),
    ],
)
def test_a_stage_that_fails_stops_the_road_with_a_sentence(
    section: str, values: dict[str, object], says: str, tiny_project: Path
) -> None:
    before = (tiny_project / "params.yaml").read_text()
    change(tiny_project, section, **values)
    server = {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    done = run_in(tiny_project, *FLOWS, "pipeline", "--no-promote", variables=server)
    (tiny_project / "params.yaml").write_text(before)
    assert done.returncode == 1
    assert re.search(says, mistake(done))
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("promoted")
def test_rollback_without_a_champion_before_is_a_sentence(tiny_project: Path) -> None:
    done = run_in(tiny_project, "deepmoji", "models", "rollback")
    assert done.returncode == 1
    assert "nothing to roll back to" in done.stderr
