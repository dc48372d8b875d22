"""Each ablation on a tiny corpus, beside results that the stages made: one thing changed, nothing made twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock
from scipy.stats import linregress  # type: ignore[import-untyped]

from deepmoji import ablations, corpus, stages, tokens, tracking
from deepmoji.ablation_report import extrapolate, mean_gains
from deepmoji.ablation_stores import derive_store, load_groups
from deepmoji.checkpoints import load_model
from deepmoji.cli import main
from deepmoji.datasets import write_datasets
from deepmoji.emojis import load_labels
from deepmoji.errors import DeepMojiError, InputError, UsageError
from deepmoji.pretraining import pretrain
from deepmoji.sample import write_sample
from deepmoji.stages import Project
from deepmoji.tokens import load_store, read_meta
from tests.conftest import ROOT, TINY

RANKING = "Emoji,Negative,Neutral,Positive\n😂,10,10,80\n😒,80,10,10\n😍,5,5,90\n💔,90,5,5\n"


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as the stages leave it, with two methods on one set."""
    root = tmp_path_factory.mktemp("road")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in TINY.items():
        content[section] |= values
    content["pretrain"] |= {"hidden_size": 8, "batch_size": 64, "sentiment_ranking": "ranking.csv"}
    content["finetune"] |= {"methods": ["new", "last"], "epochs": 1, "epoch_size": None, "seeds": [1, 2]}
    (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (root / "dvc.yaml").write_text("stages: {}\n")
    write_sample(root / "data")
    (root / "data" / "ranking.csv").write_text(RANKING)
    for file in (root / "data" / "tweets").iterdir():
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:700]))
    project = Project(root)
    options = project.params.section("ingest")
    source, labels = project.data / options.pop("tweets"), load_labels(options.pop("labels"))
    corpus.ingest(source, project.artifacts / "corpus", labels=labels, **options)
    tokenizing = project.params.section("tokenize")
    tokens.tokenize_corpus(project.artifacts / "corpus", project.artifacts / "tokens", **tokenizing)
    write_datasets(project.params.datasets.names, project.data, project.artifacts / "datasets")
    stages.pretrain(project)
    for method in project.params.finetune.methods:
        stages.finetune(project, "sample-sentiment", method)
    return root


def times(folder: Path) -> dict[str, int]:
    """When each weights file was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def children(root: Path) -> list[dict[str, str]]:
    """Tags of the runs below a run of the experiment `ablation`."""
    door = tracking.client(tracking.prepare(root))
    experiment = door.get_experiment_by_name("ablation")
    assert experiment is not None
    tags = [dict(run.data.tags) for run in door.search_runs([experiment.experiment_id])]
    return [one for one in tags if "mlflow.parentRunId" in one]


def test_the_ranking_of_params_reaches_pretraining(road: Path) -> None:
    metrics = load_model(road / "artifacts" / "pretrained").metrics
    assert -1 <= metrics["sentiment_rank_correlation"] <= 1


@pytest.mark.parametrize(
    ("name", "labels", "attention"), [("posneg", 2, True), ("types8", 8, True), ("no-attention", 64, False)]
)
def test_an_ablation_changes_one_thing(road: Path, name: str, labels: int, attention: bool) -> None:
    before = {key: value for key, value in times(road / "artifacts").items() if not key.startswith("ablations")}
    numbers = stages.ablation(Project(road), name)
    out = road / "artifacts" / "ablations" / name
    model, base = load_model(out / name / "pretrained"), load_model(road / "artifacts" / "pretrained")
    assert len(model.labels) == labels
    assert {key for key in base.model.config if base.model.config[key] != model.model.config[key]} == (
        {"classes"} if attention else {"attention"}
    )
    report = json.loads((out / "report.json").read_text())
    rows = report["datasets"]["sample-sentiment"]["last"]["rows"]
    assert [row["method"] for row in rows] == ["base", name]
    assert [len(row["scores"]) for row in rows] == [2, 2]
    assert rows[1]["against"]["difference"] == pytest.approx(rows[0]["mean"] - rows[1]["mean"], abs=1e-4)
    results = json.loads((road / "artifacts" / "finetuned" / "sample-sentiment" / "last" / "results.json").read_text())
    assert rows[0]["mean"] == pytest.approx(results["mean"]["test"]["accuracy"], abs=1e-5)
    assert numbers["last"]["means"] == {row["method"]: pytest.approx(row["mean"]) for row in rows}
    text = (out / "report.md").read_text()
    assert f"| {rows[1]['mean']:.3f} |" in " ".join(text.split())
    mine = [tags for tags in children(road) if tags["variant"] == name]
    assert sorted((tags["dataset"], tags["method"], tags["seed"]) for tags in mine) == [
        ("sample-sentiment", "last", "1"),
        ("sample-sentiment", "last", "2"),
    ]
    assert before == {key: value for key, value in times(road / "artifacts").items() if not key.startswith("ablations")}


def test_size_gives_a_curve_and_nothing_is_made_twice(
    road: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--project", str(road), "ablation", "size", "--share", "0.5", "--share", "0.1"]
    main(arguments)
    out = road / "artifacts" / "ablations" / "size"
    report = json.loads((out / "report.json").read_text())
    sizes = {name: facts["texts"] for name, facts in report["pretrained"].items()}
    whole = read_meta(road / "artifacts" / "tokens" / "train")["rows"]
    assert sizes == {"base": whole, "share-0.1": round(0.1 * whole), "share-0.5": round(0.5 * whole)}
    curve = report["summary"]["last"]["curve"]
    assert (curve["points"], curve["free"], curve["target"]) == (3, 1, 1_246_000_000)
    assert curve["at_target"]["low"] <= curve["at_target"]["value"] <= curve["at_target"]["high"]
    assert json.loads(capsys.readouterr().out)["last"]["curve"]["at_target"]["value"] == curve["at_target"]["value"]
    assert (out / "curve.png").stat().st_size > 5000
    assert len((out / "curve.csv").read_text().splitlines()) == 4

    written = times(road / "artifacts")
    monkeypatch.setattr(ablations, "pretrain", None)
    monkeypatch.setattr(ablations, "finetune", None)
    main(arguments)
    assert times(road / "artifacts") == written
    monkeypatch.setattr("deepmoji.provenance.version", lambda name: f"another {name}")
    with pytest.raises(TypeError, match="NoneType"):
        main(arguments)


def test_another_option_is_made_again_and_only_what_depends_on_it(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "road"
    shutil.copytree(road, copy, ignore=shutil.ignore_patterns(".state"))
    content = yaml.safe_load((copy / "params.yaml").read_text())
    content["finetune"]["embedding_l2"] = 0.001
    (copy / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    project = Project(copy)
    road_of = made_road(project)
    drawn: list[int] = []

    def watch(*paths: Path, **options: Any) -> Any:
        drawn.append(options["epoch_size"])
        return pretrain(*paths, **options)

    monkeypatch.setattr(ablations, "pretrain", watch)
    first = run(project, road_of)
    second = run(project, {**road_of, "finetune": {**road_of["finetune"], "final_dropout": 0.1}})
    assert first["pretrained.json"] == second["pretrained.json"]
    assert first["finetuned"] != second["finetuned"]
    # A fine-tune that was killed when it was made again: what lies there is of the one before.
    (project.artifacts / "ablations" / "again" / "posneg" / "finetuned" / "sample-sentiment" / "last.json").unlink()
    assert run(project, road_of)["pretrained.json"] == first["pretrained.json"]
    third = run(project, {**road_of, "pretrain": {**road_of["pretrain"], "learning_rate": 0.02}})
    assert third["pretrained.json"] != first["pretrained.json"]
    # As many examples as the road's model saw, though fewer are left under the other labels.
    assert drawn == [read_meta(road / "artifacts" / "tokens" / "train")["examples"]] * 2


def test_a_killed_pretraining_goes_on(road: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = made_road(Project(road))
    made["pretrain"] |= {"epochs": 2, "checkpoint_seconds": 0.0}
    for name in ("pretrained", "finetuned"):
        shutil.copytree(made[name], tmp_path / "road" / name)
        made[name] = tmp_path / "road" / name
    note(made)

    def ablate(name: str, report: Any = None) -> bytes:
        ablations.ablate(
            "types8", ablations.Road(**made), tmp_path / name, tmp_path / f"{name}-work",
            sets=["sample-sentiment"], methods=["last"], report=report,
        )  # fmt: skip
        assert not any((tmp_path / f"{name}-work").iterdir())
        return (tmp_path / name / "types8" / "pretrained" / "model.safetensors").read_bytes()

    def kill(metrics: dict[str, float], step: int) -> None:
        if "types8/validation_loss" in metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate("killed", kill)
    assert not (tmp_path / "killed" / "types8" / "pretrained").exists()
    with caplog.at_level("INFO"):
        killed = ablate("killed")
    assert any("going on at step" in line for line in caplog.messages)
    assert killed == ablate("whole")


def made_road(project: Project) -> dict[str, Any]:
    finetuning = project.params.section("finetune")
    del finetuning["methods"]
    folders = {name: project.artifacts / name for name in ("tokens", "datasets", "pretrained", "finetuned")}
    pretraining = project.params.section("pretrain") | {"sentiment_ranking": None}
    return {**folders, "pretrain": pretraining, "finetune": finetuning, "bootstrap": 10, "seed": 1}


def note(road: dict[str, Any]) -> None:
    """Have the road's results say that they were made with these options."""
    results = road["finetuned"] / "sample-sentiment" / "last" / "results.json"
    for path, options in {road["pretrained"] / "metrics.json": road["pretrain"], results: road["finetune"]}.items():
        content = json.loads(path.read_text())
        content["options"] = {name: options[name] for name in content["options"]}
        path.write_text(json.dumps(content))


def run(project: Project, road: dict[str, Any]) -> dict[str, int]:
    """When the parts of the ablation posneg were finished."""
    note(road)
    out = project.artifacts / "ablations" / "again"
    ablations.ablate(
        "posneg", ablations.Road(**road), out, project.state / "again", sets=["sample-sentiment"], methods=["last"]
    )
    folder = out / "posneg"
    return {
        "pretrained.json": (folder / "pretrained.json").stat().st_mtime_ns,
        "finetuned": (folder / "finetuned" / "sample-sentiment" / "last.json").stat().st_mtime_ns,
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["colour"], "choose one of posneg, types8, no-attention, size"),
        (["posneg", "--share", "0.5"], "takes no shares"),
        (["size", "--share", "1.5"], "between 0 and 1"),
        (["size", "--share", "0.5", "--share", "0.5"], "each once"),
        (["posneg", "--method", "new"], "name other methods"),
        (["posneg", "--method", "full"], "'full' is not in params.yaml"),
        (["posneg", "--dataset", "Olympic"], "'Olympic' is not in params.yaml"),
    ],
)
def test_what_makes_no_sense_is_refused(
    road: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--project", str(road), "ablation", *arguments])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and sentence in last


def test_one_run_at_a_time(road: Path) -> None:
    lock = road / ".state" / "ablations" / "posneg.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(lock),
        pytest.raises(DeepMojiError, match="Another run of this ablation"),
    ):
        stages.ablation(Project(road), "posneg")


def test_a_road_made_otherwise_is_no_base(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before any training."""
    monkeypatch.setattr(ablations, "pretrain", None)
    made = made_road(Project(road))

    def refused(**changes: Any) -> str:
        with pytest.raises((InputError, UsageError)) as caught:
            ablations.ablate(
                "no-attention", ablations.Road(**(made | changes)), tmp_path / "out", tmp_path / "work",
                sets=["sample-sentiment"], methods=["last"],
            )  # fmt: skip
        return str(caught.value)

    sizes = {"hidden_size": 9, "epochs": 8, "balance": 0.9, "patience": 7}
    for name in sizes:
        assert f"another {name} than" in refused(pretrain={**made["pretrain"], name: sizes[name]})
    schedules = {"last": [{"train": ["output"]}]}
    others: dict[str, Any] = {"seeds": [1], "epochs": 7, "max_length": 50, "class_average": True}
    for name, value in {**others, "schedules": schedules}.items():
        assert f"another {name} than" in refused(finetune={**made["finetune"], name: value})
    shutil.copytree(made["finetuned"], tmp_path / "finetuned")
    results = tmp_path / "finetuned" / "sample-sentiment" / "last" / "results.json"
    results.write_text(json.dumps({k: v for k, v in json.loads(results.read_text()).items() if k != "options"}))
    assert "does not say with which options" in refused(finetuned=tmp_path / "finetuned")
    shutil.copytree(made["pretrained"], tmp_path / "pretrained")
    (tmp_path / "pretrained" / "metrics.json").write_text("{}")
    assert "does not say with which options" in refused(pretrained=tmp_path / "pretrained")
    assert "holds no result" in refused(finetuned=tmp_path)
    assert "false already" in refused(pretrain={**made["pretrain"], "attention": False})
    assert not (tmp_path / "out").exists()


def test_texts_keep_their_order_under_other_labels(road: Path, tmp_path: Path) -> None:
    source = road / "artifacts" / "tokens"
    names = load_labels(source / "labels.json").names
    groups = load_groups("posneg2.tsv")
    derive_store(source, tmp_path / "two", groups=groups, share=1.0, seed=1)
    for split in ("train", "val", "test"):
        old, new = load_store(source / split), load_store(tmp_path / "two" / split)
        assert np.array_equal(old.ids, new.ids)
        wanted = {
            (int(row), groups[names[target]])
            for row, target in zip(old.rows, old.targets, strict=True)
            if names[target] in groups
        }
        found = [(int(row), ("negative", "positive")[t]) for row, t in zip(new.rows, new.targets, strict=True)]
        assert sorted(wanted) == sorted(found)
        assert read_meta(tmp_path / "two" / split)["labels"] == np.bincount(new.targets).tolist()


def test_a_smaller_share_is_part_of_the_larger(road: Path, tmp_path: Path) -> None:
    source = road / "artifacts" / "tokens"
    texts = {}
    for share in (0.1, 0.4):
        derive_store(source, tmp_path / str(share), groups=None, share=share, seed=1)
        texts[share] = set(load_store(tmp_path / str(share) / "train").rows.tolist())
        assert read_meta(tmp_path / str(share) / "test")["examples"] == read_meta(source / "test")["examples"]
    assert texts[0.1] < texts[0.4]
    everything = load_store(source / "train")
    part = load_store(tmp_path / "0.1" / "train")
    assert len(part.rows) == np.isin(everything.rows, list(texts[0.1])).sum()  # a chosen text keeps all its labels


def test_labels_on_one_side_are_refused(road: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 group"):
        derive_store(road / "artifacts" / "tokens", tmp_path / "x", groups={"😂": "glad"}, share=1.0, seed=1)


@pytest.mark.parametrize(("name", "classes", "emojis"), [("posneg2.tsv", 2, 62), ("types8.tsv", 8, 64)])
def test_groups_are_of_the_published_emojis(name: str, classes: int, emojis: int) -> None:
    groups = load_groups(name)
    assert set(groups) <= set(load_labels("emojis64").names)
    assert (len(set(groups.values())), len(groups)) == (classes, emojis)


def test_the_extrapolation_finds_a_line_and_its_doubt() -> None:
    found = extrapolate([(10.0**k, 0.06 + 0.02 * (k - 3)) for k in (3, 4, 5)], 1e9)  # by hand: 0.18 at 10^9
    assert found["slope"]["value"] == pytest.approx(0.02, abs=1e-5)
    assert found["at_target"]["value"] == pytest.approx(0.18, abs=1e-5)
    assert found["at_target"]["high"] - found["at_target"]["low"] < 1e-4
    # The textbook's formulas.
    k, y = np.array([3.0, 4.0, 5.0, 6.0]), np.array([0.01, 0.05, 0.04, 0.08])
    found = extrapolate([(10.0**x, v) for x, v in zip(k, y, strict=True)], 1e9)
    assert (found["points"], found["free"]) == (4, 2)
    line = linregress(k, y)
    quantile = 4.302653  # of Student's t, 2 degrees of freedom, 97.5 %
    assert found["slope"]["low"] == pytest.approx(line.slope - quantile * line.stderr, abs=2e-5)
    residual = ((y - line.intercept - line.slope * k) ** 2).sum() / 2
    half = quantile * np.sqrt(residual * (1 / 4 + (9 - k.mean()) ** 2 / 5))
    assert found["at_target"]["high"] == pytest.approx(line.intercept + 9 * line.slope + half, abs=2e-5)
    assert found["line"][-1] == {"texts": 10**9, **found["at_target"]}
    few = extrapolate([(1e3, 0.1), (1e5, 0.2)], 1e9)
    assert few["at_target"]["value"] == pytest.approx(0.4, abs=1e-5) and few["at_target"]["low"] is None


def test_more_sets_are_not_more_pretrainings() -> None:
    """Two sets, three models: three points, at the means over the sets."""
    content: dict[str, Any] = {"pretrained": {n: {"texts": k} for n, k in (("a", 10), ("b", 100), ("base", 1000))}}
    scores = {"one": (0.5, 0.6, 0.7), "two": (0.6, 0.6, 0.9)}
    content["datasets"] = {
        name: {
            "new": {"rows": [{"method": "base", "mean": 0.4}]},
            "last": {"rows": [{"method": m, "mean": v} for m, v in zip(("a", "b", "base"), values, strict=True)]},
        }
        for name, values in scores.items()
    }
    points = mean_gains(content, "last")
    np.testing.assert_allclose(points, [(10, 0.15), (100, 0.2), (1000, 0.4)])
    assert extrapolate(points, 1e9)["free"] == 1
