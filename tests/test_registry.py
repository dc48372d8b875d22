"""The registry in a real MLflow: gates that refuse, a champion, the way back, and models that load elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import deepmoji
from deepmoji import registry, tracking
from deepmoji.errors import InputError, RegistryError, UsageError
from deepmoji.gates import Gates, Significance, load_gates, relative_faults
from tests.tiny import TEXTS, tiny_model

TAGS = {"data": "d1", "git_commit": "c1", "code": "k1", "dvc_lock": "l1"}
GATES = Gates(
    minimum={"top5": 0.2},
    maximum_drop={"top5": 0.02},
    required_tags=["git_commit", "code", "data", "dvc_lock"],
    same_data="data",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose database exists, with the model folder `tiny` in it."""
    folder = tmp_path_factory.mktemp("project")
    tracking.prepare(folder)
    tiny_model(folder / "tiny")
    return folder


class Shelf:
    """Versions of one registered model, made directly: gates look at tags, not at weights."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.client = tracking.client(tracking.tracking_uri(root))
        self.client.create_registered_model(name)

    def add(self, tags: dict[str, str] = TAGS, **numbers: float) -> int:
        facts = {**tags, **{f"number.{key}": repr(value) for key, value in numbers.items()}}
        return int(self.client.create_model_version(self.name, source=str(self.root / "tiny"), tags=facts).version)

    def promote(self, version: int, gates: Gates = GATES, **options: Any) -> None:
        registry.promote(self.root, version, gates, name=self.name, **options)

    def champion(self) -> int | None:
        return registry.champion(self.root, self.name)


@pytest.fixture
def shelf(root: Path, request: pytest.FixtureRequest) -> Shelf:
    return Shelf(root, "m-" + "".join(c for c in request.node.name if c.isalnum())[:60])


def test_the_shipped_gates_are_read(project_root: Path) -> None:
    gates = load_gates(project_root / "mlflow" / "promotion.yaml")
    assert gates.minimum == {"top5": 0.234, "transfer_gain": 0.0}
    assert {"code", "data"} <= set(gates.required_tags)


def test_a_version_named_with_its_model_is_the_one_promoted(root: Path, shelf: Shelf) -> None:
    other = Shelf(root, f"{shelf.name}-2")
    other.add(top5=0.5)
    chosen = shelf.add(top5=0.5)
    registry.promote(root, f"{shelf.name}/{chosen}", GATES, name=other.name)
    assert (shelf.champion(), other.champion()) == (chosen, None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"minimun": {}}, "minimun: extra inputs are not permitted"),
        ({"minimum": {"top5": "high"}}, "minimum.top5: input should be a valid number"),
        ({"maximum_drop": {"top5": -0.1}}, "maximum_drop.top5: input should be greater than or equal to 0"),
        ({"same_data": None, "required_tags": "code"}, "2 problem"),
        ({"significance": {"level": 0.9, "rows": "n"}}, "significance.level: input should be less than 0.5"),
    ],
)
def test_gates_that_are_wrong_are_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "promotion.yaml"
    path.write_text(yaml.safe_dump(GATES.model_dump() | change))
    with pytest.raises(UsageError, match=complaint) as caught:
        load_gates(path)
    assert "\n" not in str(caught.value)


def test_gates_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is missing"):
        load_gates(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("minimum: [")
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        load_gates(tmp_path / "broken.yaml")


def test_the_first_good_version_becomes_champion(shelf: Shelf) -> None:
    version = shelf.add(top5=0.3)
    assert shelf.champion() is None
    shelf.promote(version)
    assert shelf.champion() == version
    with pytest.raises(RegistryError, match="is the champion already"):
        shelf.promote(version)


@pytest.mark.parametrize(
    ("tags", "numbers", "complaint"),
    [
        (TAGS, {"top5": 0.199}, "top5 is 0.199, at least 0.2 is required"),
        (TAGS, {}, "the number top5 is not there"),
        (TAGS, {"top5": float("nan")}, "the number top5 is not there"),
        (TAGS | {"code": "unknown"}, {"top5": 0.9}, "the code that it was made from is unknown"),
        (TAGS | {"data": "unknown"}, {"top5": 0.9}, "the data that it was made from is unknown"),
        ({"data": "d1"}, {"top5": 0.9}, "git_commit .* unknown; the code .* unknown; the dvc_lock .* unknown"),
    ],
)
def test_a_version_that_falls_short_is_refused(
    shelf: Shelf, tags: dict[str, str], numbers: dict[str, float], complaint: str
) -> None:
    version = shelf.add(tags, **numbers)
    with pytest.raises(RegistryError, match=complaint) as caught:
        shelf.promote(version)
    assert shelf.champion() is None
    assert complaint.split()[-1] in registry.show(shelf.root, version, shelf.name)["tags"]["refused"]
    assert "\n" not in str(caught.value)


def test_a_challenger_may_fall_a_little_but_not_more(shelf: Shelf) -> None:
    shelf.promote(shelf.add(top5=0.50))
    worse = shelf.add(top5=0.47)
    with pytest.raises(RegistryError, match=r"top5 fell from 0.5 to 0.47, by 0.03 where 0.02 is allowed"):
        shelf.promote(worse)
    assert shelf.champion() == 1
    shelf.promote(shelf.add(top5=0.49))
    assert shelf.champion() == 3


def test_numbers_from_other_data_do_not_compare(shelf: Shelf) -> None:
    shelf.promote(shelf.add(top5=0.50))
    challenger = shelf.add(TAGS | {"data": "d2"}, top5=0.30)
    with pytest.raises(RegistryError, match="measured on other data"):
        shelf.promote(challenger)
    asked: list[Path] = []

    def strong(folder: Path) -> dict[str, float]:
        asked.append(folder)
        return {"top5": 0.40}

    with pytest.raises(RegistryError, match=r"top5 fell from 0.4 to 0.3"):
        shelf.promote(challenger, evaluate=strong)
    assert (asked[0] / "model.safetensors").is_file(), "it is the champion's folder that is measured"
    with pytest.raises(RegistryError, match="top5 of the champion is not there"):
        shelf.promote(challenger, evaluate=lambda folder: {})
    assert shelf.champion() == 1
    shelf.promote(challenger, evaluate=lambda folder: {"top5": 0.31})
    assert shelf.champion() == 2


def test_a_drop_within_chance_passes_if_the_gates_say_so() -> None:
    gates = GATES.model_copy(update={"significance": Significance(level=0.05, rows="test_rows")})
    before, after = {"top5": 0.50}, {"top5": 0.46}
    assert relative_faults(gates, after | {"test_rows": 100}, before) == []
    assert len(relative_faults(gates, after | {"test_rows": 10_000}, before)) == 1
    assert len(relative_faults(gates, after, before)) == 1, "of unknown rows nothing is chance"
    assert len(relative_faults(GATES, after | {"test_rows": 100}, before)) == 1


def test_rollback_walks_back_through_the_champions(shelf: Shelf) -> None:
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        registry.rollback(shelf.root, shelf.name)
    for _ in range(3):
        shelf.promote(shelf.add(top5=0.3))
    assert registry.rollback(shelf.root, shelf.name) == shelf.champion() == 2
    shelf.promote(shelf.add(top5=0.3))
    assert registry.rollback(shelf.root, shelf.name) == shelf.champion() == 2, "not 3, which was rolled back before"
    assert registry.rollback(shelf.root, shelf.name) == shelf.champion() == 1
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        registry.rollback(shelf.root, shelf.name)
    tags = shelf.client.get_registered_model(shelf.name).tags
    told = [f"{event['action']} {event['version']}" for event in json.loads(tags["history"])]
    assert told == [*("promote 1", "promote 2", "promote 3"), "rollback 2", "promote 4", "rollback 2", "rollback 1"]
    mine = registry.show(shelf.root, 2, shelf.name)["history"]
    assert [event["action"] for event in mine] == ["promote", "rollback", "rollback"]


def test_an_alias_that_was_set_by_hand_does_not_confuse_the_way_back(shelf: Shelf) -> None:
    for _ in range(2):
        shelf.promote(shelf.add(top5=0.3))
    shelf.client.set_registered_model_alias(shelf.name, "champion", str(shelf.add(top5=0.3)))
    assert registry.rollback(shelf.root, shelf.name) == 2


def test_promotions_at_the_same_time_do_not_both_win_unseen(shelf: Shelf) -> None:
    versions = [shelf.add(top5=0.3) for _ in range(4)]
    refused: list[str] = []

    def promote(version: int) -> None:
        try:
            shelf.promote(version)
        except RegistryError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=promote, args=[version]) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    history = json.loads(shelf.client.get_registered_model(shelf.name).tags["history"])
    assert len(history) + len(refused) == 4, "each is in the history or was refused"
    assert all("changed meanwhile" in text for text in refused)
    assert shelf.champion() == history[-1]["version"]
    assert [event["before"] for event in history] == [None, *(event["version"] for event in history[:-1])]


def test_versions_are_listed_shown_and_compared(shelf: Shelf) -> None:
    shelf.promote(shelf.add(top5=0.3, loss=3.0))
    shelf.add(TAGS | {"data": "d2", "model_digest": "x"}, top5=0.35)
    rows = [row for row in registry.list_models(shelf.root) if row["name"] == shelf.name]
    assert [(row["version"], row["aliases"], row["top5"]) for row in rows] == [(2, "", 0.35), (1, "champion", 0.3)]
    shown = registry.show(shelf.root, f"{shelf.name}@champion")
    assert (shown["version"], shown["champion"], shown["numbers"]) == (1, True, {"loss": 3.0, "top5": 0.3})
    assert shown["tags"]["git_commit"] == "c1"
    compared = registry.compare(shelf.root, 1, f"models:/{shelf.name}/2", shelf.name)
    assert {row["number"]: row["difference"] for row in compared} == {
        "loss": None, "top5": pytest.approx(0.05), "data": "other data",
    }  # fmt: skip
    lines = registry.table(compared).splitlines()
    assert lines[0].split() == ["number", shelf.name, "1", shelf.name, "2", "difference"]
    assert "0.3500" in lines[2]
    assert registry.find(shelf.root, "model_digest", "x", shelf.name) == 2
    assert registry.find(shelf.root, "model_digest", "y", shelf.name) is None
    with pytest.raises(RegistryError, match="has no version '9': there is 1, 2"):
        registry.show(shelf.root, 9, shelf.name)


def test_a_version_with_other_numbers_or_facts_that_are_known_by_now_is_not_taken_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add(TAGS | {"model_digest": "x", "git_commit": "unknown"}, top5=0.3)
    commit = {"git_commit": "unknown"}
    monkeypatch.setattr(registry, "provenance", lambda _: commit)

    def find(**numbers: float) -> int | None:
        return registry.find(shelf.root, "model_digest", "x", shelf.name, metrics=numbers)

    assert find(top5=0.3) == 1
    assert find(top5=0.4) is find(top5=0.3, transfer_gain=0.1) is None
    commit["git_commit"] = "c1"
    assert find(top5=0.3) is None, "it would be refused for its unknown commit for ever"


def test_a_version_is_known_as_rolled_back_until_it_is_promoted_again(shelf: Shelf) -> None:
    for _ in range(2):
        shelf.promote(shelf.add(top5=0.3))
    registry.rollback(shelf.root, shelf.name)
    assert [registry.was_rolled_back(shelf.root, version, shelf.name) for version in (1, 2)] == [False, True]
    shelf.promote(2)
    assert not registry.was_rolled_back(shelf.root, 2, shelf.name)


def test_what_is_not_there_is_one_sentence(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="run the pipeline first"):
        registry.champion(tmp_path)
    with pytest.raises(RegistryError, match="nobody has no version 'champion': there is none"):
        registry.resolve("models:/nobody@champion", root)
    with pytest.raises(UsageError, match="is no model URI"):
        registry.resolve("models:/deepmoji", root)
    with pytest.raises(UsageError, match="not usable"):
        registry.champion(root, "a' or name like '%")
    with pytest.raises(InputError, match="not a whole model folder"):
        registry.register(root, tmp_path, tags={}, metrics={})
    assert registry.table([]) == "nothing is registered yet"
    assert registry.find(root, "model_digest", "y", "nobody") is None


@pytest.fixture(scope="module")
def registered(root: Path) -> int:
    """The tiny model, registered for real as deepmoji."""
    return registry.register(root, root / "tiny", tags={"data": "d1", "preset": "test"}, metrics={"top5": 0.3})


def test_a_registered_version_carries_numbers_origin_and_alias(root: Path, registered: int) -> None:
    shown = registry.show(root, "challenger")
    assert shown["version"] == registered
    assert shown["numbers"] == {"top5": 0.3}
    assert shown["tags"]["data"] == "d1" and shown["tags"]["preset"] == "test"
    assert len(shown["tags"]["code"]) == 16
    assert shown["tags"]["git_commit"] == "unknown", "the project of this test is not under git"
    run = tracking.client(tracking.tracking_uri(root)).get_run(shown["run"])
    assert run.info.status == "FINISHED"
    with pytest.raises(RegistryError, match="the git_commit that it was made from is unknown"):
        registry.promote(root, registered, GATES)
    registry.promote(root, registered, GATES.model_copy(update={"required_tags": ["code", "data"]}))
    with pytest.raises(RegistryError, match="has no version 'challenger'"):
        registry.show(root, "challenger")


def test_a_registered_model_loads_by_uri(root: Path, registered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"models:/deepmoji/{registered}"
    model = registry.load(uri, root=root)
    assert model.name == f"{uri} (preset test)"
    expected = deepmoji.load(root / "tiny").probabilities(TEXTS)
    np.testing.assert_array_equal(model.probabilities(TEXTS), expected)
    assert {"config.json", "MODEL_CARD.md"} <= {file.name for file in registry.resolve(uri, root).iterdir()}
    (root / "params.yaml").touch()
    (root / "dvc.yaml").touch()
    monkeypatch.setenv("DEEPMOJI_PROJECT", str(root))
    np.testing.assert_array_equal(deepmoji.load(uri).probabilities(TEXTS), expected)
    tracking.client(tracking.tracking_uri(root)).set_model_version_tag("deepmoji", str(registered), "synthetic", "yes")
    assert registry.load(uri, root=root).name == f"{uri} (trained on the synthetic sample)"
    assert registry.resolve(root / "tiny", root) == root / "tiny"


def test_a_service_without_a_project_loads_from_the_named_registry(
    root: Path, registered: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"models:/deepmoji/{registered}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert registry.home() is None and registry.default_model(None) == "starter"
    with pytest.raises(UsageError, match="not inside a DeepMoji project"):
        deepmoji.load(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(root))
    expected = deepmoji.load(root / "tiny").probabilities(TEXTS)
    np.testing.assert_array_equal(deepmoji.load(uri).probabilities(TEXTS), expected)
    assert registry.default_model(registry.home()) == registry.default_model(root)
    assert list((tmp_path / "cache").iterdir()) == [registry.home()]
    monkeypatch.setenv("DEEPMOJI_PROJECT", str(tmp_path))
    with pytest.raises(UsageError, match="not inside a DeepMoji project"):
        deepmoji.load(uri)


def test_a_registry_that_cannot_be_used_is_not_taken_for_an_empty_one(
    root: Path, registered: int, tmp_path: Path
) -> None:
    assert registry.default_model(tmp_path) == "starter"
    shutil.copytree(root / ".state" / "mlflow", tmp_path / ".state" / "mlflow")
    with pytest.raises(RegistryError, match="belongs to a project elsewhere"):
        registry.default_model(tmp_path)


def test_registering_touches_neither_mlflows_global_address_nor_the_working_folder(
    root: Path, registered: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    version = registry.register(root, root / "tiny", "elsewhere", tags={}, metrics={})
    assert version == 1
    assert list(tmp_path.iterdir()) == []
    assert "MLFLOW_TRACKING_URI" not in os.environ
    kept = registry.resolve("models:/elsewhere/1", root)
    assert kept.is_relative_to(root / ".state" / "mlflow" / "artifacts" / "release")


SERVED = """
import json, sys, warnings
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import deepmoji
texts = json.loads(sys.argv[3])
table = pd.DataFrame({"text": texts})
answers = {
    "home": deepmoji.__file__,
    "predict": model.predict(table, params={"top_k": 2}).to_dict("records"),
    "list": model.predict(texts).to_dict("records"),
    "probabilities": model.predict(table, params={"output": "probabilities"}).values.tolist(),
    "features": model.predict(table, params={"output": "features"})["features"].tolist(),
    "explain": model.predict(table, params={"output": "explain"}).to_dict("records"),
}
try:
    model.predict(table, params={"output": "nonsense"})
except Exception as error:
    answers["wrong"] = str(error)
print(json.dumps(answers))
"""


def test_mlflow_loads_the_model_with_the_code_that_was_logged(root: Path, registered: int, tmp_path: Path) -> None:
    asked = [tracking.tracking_uri(root), f"models:/deepmoji/{registered}", json.dumps(TEXTS)]
    command = [sys.executable, "-c", SERVED, *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert Path(answers["home"]).is_relative_to(root / ".state"), "the model brings its code along"
    model = deepmoji.load(root / "tiny")
    expected = model.predict(TEXTS, top_k=2)
    assert [row["labels"] for row in answers["predict"]] == [[p.label for p in best] for best in expected]
    assert [row["decision"] for row in answers["predict"]] == [[best[0].label] for best in expected]
    assert len(answers["list"][0]["labels"]) == 5
    np.testing.assert_allclose(answers["probabilities"], model.probabilities(TEXTS), atol=1e-6)
    np.testing.assert_allclose(answers["features"], model.encode(TEXTS), atol=1e-6)
    assert answers["explain"][0]["tokens"] == ["i", "love", "this"]
    assert "choose one of predict, probabilities, features, explain" in answers["wrong"]


def test_the_logged_requirements_name_what_is_imported(root: Path, registered: int) -> None:
    folder = registry.resolve(f"models:/deepmoji/{registered}", root).parents[1]
    lines = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} == set(tracking.SERVING_NEEDS)
    assert all("==" in line for line in lines)
    assert not list(folder.rglob("*.pkl")), "nothing is pickled"
