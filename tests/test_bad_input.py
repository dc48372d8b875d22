"""What users get wrong, through the commands that they type: one sentence, exit code 1 or 2, nothing half-written."""

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from deepmoji import baselines, config, registry
from deepmoji.config import load_params
from deepmoji.datasets import write_datasets
from deepmoji.errors import DeepMojiError, ServiceError, UsageError, ValidationFailed
from deepmoji.phases import LAYERS
from deepmoji.predictions import Predictions, write_predictions
from deepmoji.sample import write_sample
from deepmoji.stages import Project, finetune_own, validate
from tests import mini, servers
from tests.conftest import ROOT, deepmoji
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("warm_stages")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Not a whole project, but what commands take for one."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy2(ROOT / name, tmp_path)
    for name in ("deepmoji", "flows"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(project: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DEEPMOJI_PROJECT": str(project)} | more
    return deepmoji(*arguments, cwd=project, env=environment, text=True)


def change(project: Path, **sections: dict[str, object]) -> None:
    path = project / "params.yaml"
    content = yaml.safe_load(path.read_text())
    for section, values in sections.items():
        content[section] |= values
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def test_names_in_params_are_checked_before_the_first_stage(project: Path) -> None:
    change(
        project,
        finetune={"methods": ["new", "tickle"]},
        benchmark={"baselines": ["tdidf"]},
    )
    with pytest.raises(UsageError, match=r"2 problem.*tickle.*tdidf"):
        load_params(project / "params.yaml")
    change(project, finetune={"methods": ["new"], "schedules": {"mine": [{"train": ["outptu"]}]}})
    with pytest.raises(UsageError, match=r"finetune.schedules.mine.0.train.0.*'output'.*'outptu'"):
        load_params(project / "params.yaml")


@pytest.mark.parametrize(
    ("name", "phases", "says"),
    [
        ("mine", [], "'mine' has no phases"),
        ("mine", [{"train": ["all"]}, {"train": ["output"], "solve": True}], "Phase 2 .* only a first phase"),
        ("mine", [{"train": ["output"], "solve": True, "learning_rate": 0.1}], "leave out learning_rate"),
        ("last", [{"train": ["all"]}], "'last' has the name of a built-in method"),
        ("tfidf", [{"train": ["all"]}], "'tfidf' has the name of a baseline"),
    ],
)
def test_schedules_in_params_are_checked_before_the_first_stage(
    project: Path, name: str, phases: list[object], says: str
) -> None:
    change(project, finetune={"methods": ["new"], "schedules": {name: phases}})
    with pytest.raises(UsageError, match=f"(?i){says}") as caught:
        load_params(project / "params.yaml")
    assert "\n" not in str(caught.value)


def test_names_that_params_may_hold_are_those_that_exist(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_args(config.Baseline) == tuple(baselines.BASELINES)
    monkeypatch.setattr(config, "find_spec", lambda name: name)  # minilm's package is an extra
    change(
        project,
        finetune={"schedules": {"mine": [{"train": [layer]} for layer in ("all", *LAYERS)]}, "methods": ["mine"]},
        benchmark={"baselines": list(baselines.BASELINES)},
    )
    assert load_params(project / "params.yaml").finetune.methods == ["mine"]


def test_an_unknown_set_leaves_those_written_before_whole(tmp_path: Path) -> None:
    write_sample(tmp_path / "data")
    out = tmp_path / "out"
    write_datasets(["sample-sentiment"], tmp_path / "data", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match="'foo'"):
        write_datasets(["sample-emotion", "foo"], tmp_path / "data", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("command", [("predict",), ("encode", "--out", "features.npy")])
def test_a_file_without_the_column_fails(project: Path, command: tuple[str, ...]) -> None:
    folder = tiny_model(project / "model")
    (project / "table.csv").write_text("a,b\n1,2\n")
    done = run(project, *command, "--model", str(folder), "--file", "table.csv")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "--text-column" in done.stderr.splitlines()[-1]
    assert not (project / "features.npy").exists()


def test_a_full_disk_leaves_no_half_features(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_model(project / "model")
    limit: Callable[[], None] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-m", "deepmoji.cli", "encode", "--model", str(folder), "--out", "f.npy", "hello"],
        cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not list(project.glob("f.npy*"))


def obey_permissions() -> None:
    """In a child process of root, give up the right to write where the permissions say no."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE; without the right it fails, no harm


def test_a_folder_that_may_not_be_written_is_one_sentence(project: Path) -> None:
    (project / "data" / "tweets").mkdir(parents=True)
    (project / "data" / "tweets" / "some.txt").write_text("so good 😂\n" * 5)
    (project / ".state").mkdir()
    (project / "artifacts").mkdir(mode=0o555)
    done = subprocess.run(
        [sys.executable, "-m", "deepmoji.cli", "ingest"], cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=obey_permissions, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "artifacts" in done.stderr.splitlines()[-1]
    assert not any((project / "artifacts").iterdir())


def test_a_name_that_cannot_be_registered_is_refused_before_the_work(project: Path) -> None:
    (project / "mine.csv").write_text("text,label\na,b\n")
    done = run(project, "finetune", "--data", "mine.csv", "--name", "a/../b")
    assert done.returncode == 2
    assert "'deepmoji-a/../b'" in done.stderr
    assert not (project / "models").exists()


def test_a_file_whose_name_cannot_be_registered_may_get_another(project: Path) -> None:
    (project / "My Reviews.csv").write_text("text,label\na,b\n")
    done = run(project, "finetune", "--data", "My Reviews.csv")
    assert done.returncode == 2
    assert "'deepmoji-My Reviews' is not usable" in done.stderr and "--name" in done.stderr
    assert "\n" not in done.stderr.strip()


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_that_is_another_folder_is_refused_before_the_work(project: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"The name '{name}' is not usable"):
        own_table(project, name=name)
    assert not (project / "models").exists()


def test_a_report_that_cannot_be_made_costs_no_model(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the new model lies a damaged one; then one of an older version of the table."""
    other = project / "models" / "mine" / "finetuned" / "mine" / "full"
    other.mkdir(parents=True)
    (other / "results.json").write_text("{}")
    with pytest.raises(DeepMojiError, match=r"as models:/deepmoji-mine/1, but .*/full/results.json") as caught:
        own_table(project, name="mine")
    assert "\n" not in str(caught.value)
    (version,) = registry.list_models(project)
    assert version["name"] == "deepmoji-mine"
    assert version["mean"] == version["macro_f1"] and version["std"] == 0.0
    facts = {"max_length": 10, "truncated": {}, "new_words": 0, "class_average": False, "pretrained": {}}
    results = {"mean": {"validation": {"macro_f1": 0.5}}, "seeds": [{"test": {}}]}
    (other / "results.json").write_text(json.dumps(facts | results))
    ids = np.zeros(1, np.int64)
    write_predictions(other / "predictions.parquet", [Predictions(1, ids, ids, ids, np.ones((1, 2), np.float32))])
    monkeypatch.setattr("deepmoji.benchmark.run_baseline", None)  # what a baseline gave was kept
    numbers = own_table(project, name="mine")
    assert numbers["version"] == 2
    assert set(numbers["scores"]["mine"]) == {"majority", "last"}
    assert numbers["scores"]["mine"]["last"]["mean"] == pytest.approx(version["mean"], abs=1e-5)


@pytest.mark.parametrize("class_average", [False, True])
def test_a_registered_model_has_its_own_figures(project: Path, class_average: bool) -> None:
    """Not the mean over seeds, nor those of models of one class each that were judged beside it."""
    change(project, finetune={"class_average": class_average})
    labels = ("joy", "joy|love", "", "love") if class_average else ("bad", "good")
    own_table(project, name="mine", seeds=[1, 2, 3], labels=labels)
    folder = project / "models" / "mine" / "finetuned" / "mine" / "last"
    (version,) = registry.list_models(project)
    own = json.loads((folder / "metrics.json").read_text())["test"]
    assert {name: version[name] for name in own} == pytest.approx(own)
    results = json.loads((folder / "results.json").read_text())
    over_seeds = {key: results[key]["test"]["macro_f1"] for key in ("mean", "std")}
    assert {key: version[key] for key in over_seeds} == pytest.approx(over_seeds)
    assert version["mean"] != pytest.approx(version["macro_f1"])


def own_table(
    project: Path,
    *,
    name: str,
    seeds: Sequence[int] = (1,),
    labels: Sequence[str] = ("bad", "good"),
    method: str = "last",
) -> dict[str, Any]:
    """Fine-tune a tiny model on a small table."""
    change(project, finetune={"seeds": [*seeds], "epochs": 1}, benchmark={"baselines": ["majority"], "bootstrap": 10})
    rows = "".join(f"{'love' if n % 2 else 'hate'} this {n},{labels[n % len(labels)]}\n" for n in range(40))
    (project / "mine.csv").write_text(f"text,label\n{rows}")
    return finetune_own(
        Project(project), project / "mine.csv", text_column="text", label_column="label", split="50/25/25",
        method=method, model=str(tiny_model(project / "model")), name=name, out=None,
    )  # fmt: skip


def test_an_outage_does_not_hide_a_failed_validation(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **_: Any) -> None:
        arguments[2].mkdir(parents=True)
        raise ValidationFailed("Rule 7 fails.")

    def away(*_: object) -> None:
        raise ServiceError("MLflow is away.")

    (project / "artifacts" / "corpus").mkdir(parents=True)
    (project / "artifacts" / "datasets").mkdir()
    monkeypatch.setattr("deepmoji.validation.validate", fails)
    monkeypatch.setattr("deepmoji.tracking.Run.artifacts", away)
    with pytest.raises(ValidationFailed, match="Rule 7"):
        validate(Project(project))


def test_what_cannot_work_is_refused_before_anything_is_written(project: Path) -> None:
    for name, method, says in (("mine", "nonsense", "nonsense"), ("goemotions", "last", "published set")):
        with pytest.raises(UsageError, match=says):
            own_table(project, name=name, method=method)
    assert not (project / "models").exists() and not (project / ".state").exists()


def test_mlflow_away_is_one_readable_line(project: Path) -> None:
    uri = f"http://127.0.0.1:{servers.free_port()}"
    done = run(project, "models", "list", MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"MLflow at {uri} could not list the models ([Errno 111] Connection refused)" in done.stderr


@pytest.mark.parametrize("preset", [(), ("--preset", "sample")])
def test_a_data_folder_that_nothing_would_read_is_refused(project: Path, preset: tuple[str, ...]) -> None:
    done = mini.run(project, *mini.FLOWS, "pipeline", *preset, "--data", "elsewhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "elsewhere" in done.stderr and "laptop" in done.stderr
    assert not (project / "data").exists()


def test_the_sample_takes_no_place_of_own_data(project: Path) -> None:
    (project / "data.dvc").write_text("outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: data\n")
    done = mini.run(project, *mini.FLOWS, "pipeline")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "dvc pull" in done.stderr
    assert not (project / "data").exists()


def test_prefect_away_is_one_readable_line(project: Path) -> None:
    (project / "data").mkdir()
    url = f"http://127.0.0.1:{servers.free_port()}/api"
    done = mini.run(project, *mini.FLOWS, "pipeline", PREFECT_API_URL=url)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"Prefect server at {url} does not answer" in done.stderr
