"""The benchmark: intervals and paired tests that mean something, a report that hides nothing."""

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepmoji import stages
from deepmoji.baselines import BASELINES
from deepmoji.benchmark import Entry, benchmark, compare
from deepmoji.datasets import CATALOG, Dataset, fingerprint, save_dataset
from deepmoji.errors import InputError, UsageError
from deepmoji.metrics import metrics_for, score
from deepmoji.predictions import Judged, Predictions, judge, read_predictions, rescore, write_predictions

CLASSES = ("fear", "joy", "anger")
SETTINGS: dict[str, Any] = {"baselines": ["majority", "tfidf"], "bootstrap": 200, "seed": 1}


def make_dataset(name: str = "toy", task: str = "multiclass", metric: str = "macro_f1", rows: int = 400) -> Dataset:
    rng = np.random.default_rng(5)
    classes = CLASSES[:2] if task == "binary" else CLASSES
    labels: NDArray[np.int64] = rng.integers(len(classes), size=rows)
    texts = [f"{classes[label]} or so" if rng.random() < 0.7 else "nothing" for label in labels]
    truth = (labels[:, None] == np.arange(len(classes))).astype(np.uint8) if task == "multilabel" else labels
    splits = np.array(["train", "train", "val", "test"] * (rows // 4))
    return Dataset(name, texts, truth, splits, classes, task, metric, {"chain-thaw": 0.75, "2017 best": 0.7})


def made_run(dataset: Dataset, seed: int, right: float) -> Predictions:
    """Decisions of which a share `right` agrees with the truth, the others being the next class."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(dataset.splits == "test")
    truth = dataset.labels[rows].astype(np.int64)
    wrong = rng.random(len(rows)) >= right
    if truth.ndim == 1:
        decisions = np.where(wrong, (truth + 1) % len(dataset.classes), truth)
        probabilities = (decisions[:, None] == np.arange(len(dataset.classes))).astype(np.float32)
    else:
        decisions = np.where(wrong[:, None], np.roll(truth, 1, axis=1), truth)
        probabilities = decisions.astype(np.float32)
    return Predictions(seed, rows, truth, decisions, probabilities)


def made_entry(dataset: Dataset, method: str, right: float, seeds: tuple[int, ...] = (1, 2, 3)) -> Entry:
    runs = [made_run(dataset, seed, right) for seed in seeds]
    names = metrics_for(dataset.task)
    test = [{name: score(name, run.truth, run.decisions) for name in names} for run in runs]
    return Entry(method, runs, test, {})


def write_finetuned(
    folder: Path, dataset: Dataset, method: str, right: float, validation: float = 0.5, **facts: Any
) -> None:
    """What `finetune` leaves behind, as far as the benchmark reads it."""
    entry = made_entry(dataset, method, right)
    out = folder / dataset.name / method
    out.mkdir(parents=True)
    write_predictions(out / "predictions.parquet", entry.runs)
    results = {
        "max_length": 20,
        "truncated": {split: {"texts": 3, "of": 100} for split in ("train", "val", "test")},
        "new_words": 7,
        "class_average": False,
        "pretrained": {"examples": 12345},
        "start": "any",
        "data": fingerprint(dataset),
        "mean": {"validation": {dataset.metric: validation}},
        "seeds": [{"seed": run.seed, "test": figures} for run, figures in zip(entry.runs, entry.test, strict=True)],
        **facts,
    }
    (out / "results.json").write_text(json.dumps(results), encoding="utf-8")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two sets; the second was not fine-tuned by `last`."""
    datasets, finetuned = tmp_path / "datasets", tmp_path / "finetuned"
    for dataset in (make_dataset(), make_dataset("other", "binary", "accuracy")):
        save_dataset(dataset, datasets / f"{dataset.name}.parquet")
        write_finetuned(finetuned, dataset, "chain-thaw", 0.95)
        write_finetuned(finetuned, dataset, "mine", 0.9)
    write_finetuned(finetuned, make_dataset(), "last", 0.6)
    return datasets, finetuned


@pytest.mark.parametrize(("task", "metric"), [("multiclass", "macro_f1"), ("binary", "f1"), ("multilabel", "jaccard")])
def test_a_row_holds_mean_and_spread_of_its_seeds(task: str, metric: str) -> None:
    dataset = make_dataset(task=task, metric=metric)
    entry = made_entry(dataset, "full", 0.8)
    (row,) = compare(dataset, [entry], 50, 1)["rows"]
    scores = [score(metric, run.truth, run.decisions) for run in entry.runs]
    assert row["scores"] == pytest.approx(scores, abs=1e-5)
    assert row["mean"] == pytest.approx(np.mean(scores), abs=1e-5)
    assert row["std"] == pytest.approx(np.std(scores, ddof=1), abs=1e-5)
    assert row["low"] < row["mean"] < row["high"]
    assert "against" not in row
    assert row["paper"] is None


def test_the_interval_of_accuracy_is_that_of_a_share() -> None:
    dataset = make_dataset(task="binary", metric="accuracy", rows=4000)
    (row,) = compare(dataset, [made_entry(dataset, "full", 0.8, seeds=(1,))], 1000, 1)["rows"]
    half = 1.96 * np.sqrt(row["mean"] * (1 - row["mean"]) / 1000)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=0.15)


def test_a_clear_difference_is_sure_and_none_is_not() -> None:
    dataset = make_dataset()
    entries = [
        made_entry(dataset, "chain-thaw", 0.9),
        made_entry(dataset, "last", 0.5),
        made_entry(dataset, "same", 0.9),
    ]
    reference, worse, same = compare(dataset, entries, 400, 1)["rows"]
    assert "against" not in reference
    assert worse["against"]["p"] == pytest.approx(2 / 401, abs=1e-5)
    assert 0 < worse["against"]["low"] < worse["against"]["difference"] < worse["against"]["high"]
    assert worse["against"]["difference"] == pytest.approx(reference["mean"] - worse["mean"], abs=1e-5)
    assert same["against"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_validation_rows_choose_the_method_and_test_rows_do_not(folders: tuple[Path, Path], tmp_path: Path) -> None:
    datasets, finetuned = folders
    write_finetuned(finetuned, make_dataset(), "new", 0.99, validation=0.9)  # knows no pretrained model
    write_finetuned(finetuned, make_dataset(), "full", 0.7, validation=0.8)
    out = tmp_path / "out"
    benchmark(datasets, finetuned, out, **SETTINGS)
    found = json.loads((out / "report.json").read_text())["datasets"]
    rows = {row["method"]: row for row in found["toy"]["rows"]}
    assert rows["full"]["mean"] < rows["mine"]["mean"]
    assert found["toy"]["chosen"] == {"method": "full", "mean": rows["full"]["mean"]}
    assert found["other"]["chosen"]["method"] == "chain-thaw"  # as good on validation as `mine`, and before it
    report = (out / "report.md").read_text()
    assert f"full {rows['full']['mean']:.3f} |" in report
    ahead = {
        line.split("|")[1].strip(): line.split("|")[6].strip() for line in report.splitlines() if line.count("|") == 7
    }
    assert ahead["majority"] == "2"
    assert ahead["mine"] == "1"


def test_pairing_sees_what_the_intervals_alone_do_not() -> None:
    dataset = make_dataset(task="binary", metric="accuracy", rows=2000)
    better = made_run(dataset, 1, 0.7)
    worse = better.decisions.copy()
    right = np.flatnonzero(worse == better.truth)[:15]
    worse[right] = 1 - worse[right]
    entries = [
        Entry("chain-thaw", [better], [{}], {}),
        Entry("last", [replace(better, decisions=worse)], [{}], {}),
    ]
    first, second = compare(dataset, entries, 500, 1)["rows"]
    assert second["high"] > first["low"]
    assert second["against"]["p"] < 0.05


def test_class_average_compares_models_of_one_class_and_of_all() -> None:
    dataset = make_dataset(metric="class_average_f1")
    whole = made_entry(dataset, "last", 0.8)
    eye = np.eye(3, dtype=np.int64)
    single = [replace(run, truth=eye[run.truth], decisions=eye[run.decisions]) for run in whole.runs]
    rows = compare(dataset, [whole, Entry("chain-thaw", single, whole.test, {})], 50, 1)["rows"]
    assert rows[0]["scores"] == rows[1]["scores"]
    assert rows[0]["against"]["p"] == 1


def test_the_report_holds_everything(folders: tuple[Path, Path], tmp_path: Path) -> None:
    told: list[tuple[dict[str, float], int]] = []
    out = tmp_path / "benchmark"
    numbers = benchmark(*folders, out, **SETTINGS, report=lambda metrics, step: told.append((metrics, step)))
    assert {path.name for path in out.iterdir()} == {
        "report.json", "report.md", "scores.csv", "means.csv", "methods.png", "toy.png", "other.png",
    }  # fmt: skip
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert list(numbers) == list(content["datasets"]) == ["other", "toy"]
    methods = [row["method"] for row in content["datasets"]["toy"]["rows"]]
    assert methods == ["majority", "tfidf", "last", "chain-thaw", "mine"]
    for name, entry in content["datasets"].items():
        for row in entry["rows"]:
            assert numbers[name][row["method"]]["mean"] == row["mean"]
            assert row["low"] <= row["mean"] <= row["high"]
    assert content["missing"] == [{"dataset": "other", "method": "last"}]
    assert [step for _, step in told] == [0, 1]
    assert told[1][0]["toy.chain-thaw"] == numbers["toy"]["chain-thaw"]["mean"]
    text = (out / "report.md").read_text(encoding="utf-8")
    wanted = ("12,345", "other by last: not fine-tuned", "published: 2017 best", "0.750", "9 of 300 texts cut at 20")
    assert [part for part in wanted if part not in text] == []
    with (out / "scores.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    with (out / "means.csv").open(encoding="utf-8") as stream:
        bars = {line["row"]: float(line["mean"]) for line in csv.DictReader(stream)}
    assert bars == {
        f"{name}: {row['method']}": row["mean"] for name, entry in content["datasets"].items() for row in entry["rows"]
    }
    seeds = {line["seed"] for line in lines if line["dataset"] == "toy" and line["method"] == "mine"}
    assert seeds == {"1", "2", "3"}
    (value,) = {
        float(line["value"])
        for line in lines
        if (line["dataset"], line["method"], line["seed"], line["metric"]) == ("toy", "mine", "2", "macro_f1")
    }
    assert value == content["datasets"]["toy"]["rows"][-1]["scores"][1]


def test_test_texts_that_were_trained_on_are_named(tmp_path: Path) -> None:
    dataset = make_dataset("toy")
    texts = [f"text {row}" for row in range(len(dataset.texts))]
    train, test = (np.flatnonzero(dataset.splits == split) for split in ("train", "test"))
    for copies, sentence in ((3, "3 of the test texts stand in the training rows too."), (0, "")):
        for row in range(copies):
            texts[test[row]] = texts[train[0]]
        folder = tmp_path / str(copies)
        changed = replace(dataset, texts=list(texts))
        save_dataset(changed, folder / "datasets" / "toy.parquet")
        write_finetuned(folder / "finetuned", changed, "last", 0.8)
        benchmark(folder / "datasets", folder / "finetuned", folder / "out", **{**SETTINGS, "baselines": []})
        text = (folder / "out" / "report.md").read_text(encoding="utf-8")
        assert ("stand in the training rows" in text) == bool(copies)
        assert sentence in text
        texts = [f"text {row}" for row in range(len(dataset.texts))]


def test_published_figures_of_others_stand_beside_ours(tmp_path: Path) -> None:
    dataset = replace(make_dataset("tweeteval-emotion"), paper={})
    save_dataset(dataset, tmp_path / "datasets" / "tweeteval-emotion.parquet")
    write_finetuned(tmp_path / "finetuned", dataset, "last", 0.8)
    benchmark(tmp_path / "datasets", tmp_path / "finetuned", tmp_path / "out", **{**SETTINGS, "baselines": []})
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| published: BiLSTM " in text
    assert "0.660 |" in text


def test_what_this_project_measured_is_not_called_published(tmp_path: Path) -> None:
    dataset = make_dataset("SS-Twitter", "binary", "accuracy")
    save_dataset(dataset, tmp_path / "datasets" / "SS-Twitter.parquet")
    write_finetuned(tmp_path / "finetuned", dataset, "last", 0.8)
    benchmark(tmp_path / "datasets", tmp_path / "finetuned", tmp_path / "out", **{**SETTINGS, "baselines": []})
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for name, figure in CATALOG["SS-Twitter"].peers.items():
        (line,) = [line for line in text.splitlines() if name in line]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells == [f"measured before: {name}", f"{figure:.3f}", "", "", ""]
    assert "| published: 2017 best " in text


def test_methods_that_are_no_longer_wanted_leave_the_table(folders: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = ["chain-thaw", "last", "full"]
    numbers = benchmark(*folders, tmp_path / "out", **SETTINGS, methods=wanted)
    assert list(numbers["toy"]) == ["majority", "tfidf", "last", "chain-thaw"]
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    missing = [(gap["dataset"], gap["method"]) for gap in content["missing"]]
    assert missing == [("other", "last"), ("other", "full"), ("toy", "full")]
    with pytest.raises(InputError, match="no fine-tuned model by full"):
        benchmark(*folders, tmp_path / "out", **SETTINGS, methods=["full"])


def test_the_stage_compares_the_methods_of_params(
    folders: tuple[Path, Path], project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def fake(*folders: Path, **options: Any) -> dict[str, Any]:
        given.update(options)
        return {}

    class Run:
        def metrics(self, *_: object) -> None: ...

        def artifacts(self, *_: object) -> None: ...

    @contextmanager
    def stage_run(*_: object) -> Iterator[Run]:
        yield Run()

    monkeypatch.setattr("deepmoji.benchmark.benchmark", fake)
    monkeypatch.setattr(stages, "stage_run", stage_run)
    monkeypatch.setattr(stages, "_report_baselines", lambda *_: None)
    shutil.copy(project_root / "params.yaml", tmp_path / "params.yaml")
    project = stages.Project(tmp_path)
    stages.benchmark(project)
    assert given["methods"] == project.params.finetune.methods
    assert given["seeds"] == project.params.finetune.seeds
    assert given["kept"] == tmp_path / ".state" / "baselines"


def test_a_row_that_saw_test_labels_is_marked_and_never_the_best(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def knows_it_all(dataset: Dataset, seed: int) -> Judged:
        eye = np.eye(len(dataset.classes))
        return judge(dataset, seed, *(eye[dataset.labels[dataset.splits == split]] for split in ("val", "test")))

    monkeypatch.setitem(BASELINES, "badjatiya-leaky", knows_it_all)
    benchmark(*folders, tmp_path / "out", **{**SETTINGS, "baselines": ["majority", "badjatiya-leaky"]})
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Not a result: badjatiya-leaky (saw test labels)" in text
    assert text.count("badjatiya-leaky") == text.count("badjatiya-leaky (saw test labels)")
    assert "**1.000**" not in text
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    (best,) = {row["mean"] for row in content["datasets"]["toy"]["rows"] if row["method"] == "chain-thaw"}
    assert f"**{best:.3f}**" in text
    write_finetuned(folders[1], make_dataset(), "full", 1.0)
    benchmark(*folders, tmp_path / "out", **{**SETTINGS, "baselines": ["badjatiya-leaky"]})
    lines = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| badjatiya-leaky") and "**" in line] == []
    assert [line for line in lines if line.startswith("| full") and "**1.000**" in line]
    benchmark(*folders, tmp_path / "out", **SETTINGS)
    assert "saw test labels" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_baselines_that_start_at_random_run_every_seed(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guess(dataset: Dataset, seed: int) -> Judged:
        rng = np.random.default_rng(seed)
        size = len(dataset.classes)
        judged = judge(dataset, seed, *(rng.random((int((dataset.splits == s).sum()), size)) for s in ("val", "test")))
        cut = {"max_length": 30, "truncated": {"test": {"texts": 2, "of": 9}}}
        return replace(judged, facts=cut)

    monkeypatch.setitem(BASELINES, "lstm", guess)
    settings = {**SETTINGS, "baselines": ["majority", "lstm"]}
    numbers = benchmark(*folders, tmp_path / "out", **settings, seeds=[4, 5, 6])
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    seeds = {row["method"]: row["seeds"] for row in content["datasets"]["toy"]["rows"]}
    assert seeds["majority"] == [1]
    assert seeds["lstm"] == [4, 5, 6]
    assert numbers["toy"]["lstm"]["std"] > 0
    assert "lstm: 2 of 9 texts cut at 30 tokens." in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_tables_of_the_report_are_rectangular(folders: tuple[Path, Path], tmp_path: Path) -> None:
    benchmark(*folders, tmp_path / "out", **SETTINGS)
    tables = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").split("\n\n")
    tables = [part for part in tables if part.startswith("|")]
    assert len(tables) == 6  # all sets, wins, and of each set methods and classes
    for table in tables:
        lines = table.split("\n")
        assert len({line.count("|") for line in lines}) == 1
        assert len({len(line) for line in lines}) == 1


def test_classes_are_told_apart_and_empty_columns_left_out(tmp_path: Path) -> None:
    dataset = replace(make_dataset("own", rows=60), paper={})
    save_dataset(dataset, tmp_path / "datasets" / "own.parquet")
    write_finetuned(tmp_path / "finetuned", dataset, "last", 1.0)
    benchmark(tmp_path / "datasets", tmp_path / "finetuned", tmp_path / "out", **{**SETTINGS, "baselines": []})
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    test = dataset.labels[dataset.splits == "test"]
    for k, name in enumerate(dataset.classes):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells == [name, str((test == k).sum()), "1.000", "1.000", "1.000"]
    assert f"With {len(test)} test texts a score says little" in text
    assert "paper" not in text.lower() and "published" not in text and "Is chain-thaw better?" not in text


def test_same_input_same_bytes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        benchmark(*folders, tmp_path / name, **SETTINGS)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_set_keeps_its_intervals_when_others_come(folders: tuple[Path, Path], tmp_path: Path) -> None:
    both = benchmark(*folders, tmp_path / "both", **SETTINGS)
    (folders[0] / "other.parquet").unlink()
    alone = benchmark(*folders, tmp_path / "alone", **SETTINGS)
    assert alone["toy"] == both["toy"]
    content = json.loads((tmp_path / "alone" / "report.json").read_text(encoding="utf-8"))
    assert content["not_listed"] == ["other"]
    assert "other: fine-tuned, but not among the labelled sets" in (tmp_path / "alone" / "report.md").read_text()


def test_predictions_of_another_set_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    changed = make_dataset()
    save_dataset(replace(changed, labels=(changed.labels + 1) % 3), folders[0] / "toy.parquet")
    with pytest.raises(InputError, match="other labels than toy"):
        benchmark(*folders, tmp_path / "out", **SETTINGS)
    save_dataset(make_dataset(rows=360), folders[0] / "toy.parquet")
    with pytest.raises(InputError, match="do not cover the test rows of toy"):
        benchmark(*folders, tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_predictions_of_an_older_set_may_be_left_out(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_dataset(make_dataset(rows=360), folders[0] / "toy.parquet")
    shutil.rmtree(folders[1] / "toy" / "mine")
    write_finetuned(folders[1], make_dataset(rows=360), "mine", 0.9)
    numbers = benchmark(*folders, tmp_path / "out", **SETTINGS, start="any")
    assert "mine" in numbers["toy"] and "last" not in numbers["toy"]
    assert "The predictions of last do not cover the test rows of toy" in caplog.text
    assert "toy by last: fine-tuned on an older version" in (tmp_path / "out" / "report.md").read_text("utf-8")
    numbers = benchmark(*folders, tmp_path / "out", **SETTINGS, start="another")
    assert "mine" not in numbers["toy"] and "The fine-tune mine of toy began from another model" in caplog.text


def test_other_texts_with_the_same_labels_are_another_set(folders: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = make_dataset()
    save_dataset(replace(dataset, texts=[f"{text}!" for text in dataset.texts]), folders[0] / "toy.parquet")
    with pytest.raises(InputError, match="of toy saw other texts"):
        benchmark(*folders, tmp_path / "out", **SETTINGS)


def test_nothing_to_compare_is_one_sentence(folders: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="run the stage datasets first"):
        benchmark(empty, folders[1], tmp_path / "out", **SETTINGS)
    with pytest.raises(InputError, match="run the stage finetune first"):
        benchmark(folders[0], empty, tmp_path / "out", **SETTINGS)
    with pytest.raises(UsageError, match="no baseline 'svm'"):
        benchmark(*folders, tmp_path / "out", **{**SETTINGS, "baselines": ["svm"]})
    (folders[1] / "toy" / "mine" / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="run the fine-tune again"):
        benchmark(*folders, tmp_path / "out", **SETTINGS)


def test_a_schedule_may_not_hide_behind_a_baseline(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_finetuned(folders[1], make_dataset(), "tfidf", 0.9)
    with pytest.raises(InputError, match="name of a baseline"):
        benchmark(*folders, tmp_path / "out", **SETTINGS)


@pytest.mark.parametrize(("task", "per_class"), [("multiclass", False), ("multiclass", True), ("multilabel", False)])
def test_predictions_come_back_as_written(task: str, per_class: bool, tmp_path: Path) -> None:
    dataset = make_dataset(task=task, metric="class_average_f1")
    rng = np.random.default_rng(2)
    runs = [
        judge(dataset, seed, rng.random((100, 3)), rng.random((100, 3)), per_class=per_class).predictions
        for seed in (9, 4)
    ]
    write_predictions(tmp_path / "predictions.parquet", runs)
    for before, after in zip(runs, read_predictions(tmp_path / "predictions.parquet"), strict=True):
        assert before.seed == after.seed
        for name in ("rows", "truth", "decisions", "probabilities"):
            assert np.array_equal(getattr(before, name), getattr(after, name)), name
    (tmp_path / "broken").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not a predictions file"):
        read_predictions(tmp_path / "broken")


def test_judging_takes_thresholds_from_validation_rows() -> None:
    dataset = make_dataset(task="binary", metric="f1")
    truth = {split: dataset.labels[dataset.splits == split] for split in ("val", "test")}
    given = {split: np.stack([1 - values * 0.3, values * 0.3], axis=1) for split, values in truth.items()}
    judged = judge(dataset, 1, given["val"], given["test"])
    assert judged.thresholds is not None
    assert judged.thresholds == pytest.approx([0.15], abs=0.02)
    assert judged.test["f1"] == judged.validation["f1"] == 1
    assert rescore(judged.predictions, "f1", 2) == judged.test["f1"]


def test_a_threshold_for_f1_decides_f1_alone() -> None:
    """As published, accuracy is that of the more probable class, whatever is best for F1."""
    dataset = make_dataset(task="binary", metric="f1")
    rng = np.random.default_rng(3)
    second = np.clip(dataset.labels * 0.15 + rng.random(len(dataset.labels)) * 0.6, 0, 1)
    given = {split: np.stack([1 - second, second], axis=1)[dataset.splits == split] for split in ("val", "test")}
    judged = judge(dataset, 1, given["val"], given["test"])
    truth = judged.predictions.truth
    probable = given["test"].argmax(axis=1)
    assert not np.array_equal(judged.predictions.decisions, probable)
    assert judged.test["f1"] == score("f1", truth, judged.predictions.decisions) > score("f1", truth, probable)
    for name in set(metrics_for("binary")) - {"f1"}:
        assert judged.test[name] == score(name, truth, probable), name
    assert judged.test["accuracy"] > score("accuracy", truth, judged.predictions.decisions)


def test_a_baseline_is_measured_once_for_a_table(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def watched(name: str, dataset: Dataset, seed: int) -> Judged:
        asked.append(f"{name} {dataset.name} {seed}")
        return BASELINES[name](dataset, seed)

    monkeypatch.setattr("deepmoji.benchmark.run_baseline", watched)
    sets = len(list(folders[0].glob("*.parquet")))
    settings = {**SETTINGS, "baselines": ["majority"], "kept": tmp_path / "kept"}
    first = benchmark(*folders, tmp_path / "out", **settings)
    report = (tmp_path / "out" / "report.json").read_bytes()
    assert len(asked) == sets
    assert benchmark(*folders, tmp_path / "out", **settings) == first and len(asked) == sets
    assert (tmp_path / "out" / "report.json").read_bytes() == report
    dataset = make_dataset()
    dataset = replace(dataset, texts=[f"{text} !" for text in dataset.texts])
    save_dataset(dataset, folders[0] / "toy.parquet")
    shutil.rmtree(folders[1] / "toy")
    write_finetuned(folders[1], dataset, "mine", 0.9)
    benchmark(*folders, tmp_path / "out", **settings)
    assert asked[sets:] == ["majority toy 1"]
    monkeypatch.setattr("deepmoji.provenance.version", lambda name: f"another {name}")
    benchmark(*folders, tmp_path / "out", **settings)
    assert len(asked) == 2 * sets + 1
    monkeypatch.setattr("deepmoji.provenance.code_digest", lambda *modules: f"other code of {modules}")
    benchmark(*folders, tmp_path / "out", **settings)
    assert len(asked) == 3 * sets + 1
    (tmp_path / "kept" / "toy" / "majority-1.json").unlink()  # a killed run left the first of two files
    benchmark(*folders, tmp_path / "out", **settings)
    assert len(asked) == 3 * sets + 2
    (tmp_path / "kept" / "toy" / "majority-1.parquet").unlink()
    benchmark(*folders, tmp_path / "out", **settings)
    assert len(asked) == 3 * sets + 3
