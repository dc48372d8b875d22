"""The rules of the house: layout, import direction, one door per heavy dependency, stages and flows that agree."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.version import Version

from deepmoji import sample
from deepmoji.cli import cli
from deepmoji.config import Params, load_params
from deepmoji.provenance import code_of

# From left to right, a module may import only what stands left of it, or beside it in the same group.
ORDER = (
    {"errors", "lock", "provenance", "shards", "splits"},
    {"phases", "schedules", "config"},
    {"emojis"},
    {"text"},
    {"vocabulary"},
    {"readers", "rawpickle", "english", "rows", "encoding"},
    {"filters", "funnel", "corpus", "dataset_formats", "owntable", "datasets", "sample"},
    {"tokens"},
    {"validation", "validation_frames", "validation_report", "validation_rules"},
    {"drift"},
    {"model", "checkpoints", "weights"},
    {"batches", "optimiser", "precision", "progress", "training"},
    {"metrics", "predictions"},
    {"insight", "pretraining"},
    {"cards", "probe", "finetuning", "baselines", "baselines_lstm"},
    {"benchmark", "report"},
    {"ablations", "ablation_report", "ablation_stores"},
    {"inference"},
    {"evaluation", "starter"},
    {"gates", "tracking", "pyfunc", "registry"},
    {"serving"},
    {"stages"},
    {"intake"},
    {"cli"},
    {"__main__"},
)
DOORS = {
    "mlflow": {"tracking", "pyfunc"},
    "great_expectations": {"validation"},
    "fastapi": {"serving"},
    "safetensors": {"checkpoints"},
    "h5py": {"weights"},
    "prefect": set(),
    "dvc": set(),
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth."""
    yield from imports_of(ast.parse(path.read_text(encoding="utf-8")))


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(root: Path) -> list[Path]:
    return sorted(path for path in (root / "deepmoji").glob("*.py") if path.stem != "__init__")


def test_every_module_has_a_place_in_the_order(project_root: Path) -> None:
    placed = set().union(*ORDER)
    assert {path.stem for path in modules(project_root)} <= placed


def test_imports_go_one_way(project_root: Path) -> None:
    place = {name: index for index, group in enumerate(ORDER) for name in group}
    wrong = [
        f"{path.stem} imports {name}"
        for path in modules(project_root)
        for name in {part.split(".")[1] for part in imports(path) if part.startswith("deepmoji.")}
        if name in place and place[name] > place[path.stem]
    ]
    assert wrong == []


def test_each_heavy_dependency_has_one_door(project_root: Path) -> None:
    wrong = [
        f"{path.stem} imports {name}"
        for path in modules(project_root)
        for name in {part.split(".")[0] for part in imports(path)}
        if name in DOORS and path.stem not in DOORS[name]
    ]
    assert wrong == []


def test_text_modules_do_without_torch(project_root: Path) -> None:
    left = set().union(*ORDER[: next(index for index, group in enumerate(ORDER) if "model" in group)])
    wrong = [
        p.stem for p in modules(project_root) if p.stem in left and "torch" in {i.split(".")[0] for i in imports(p)}
    ]
    assert wrong == []


def test_import_is_light() -> None:
    script = "import sys, deepmoji; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert not {"torch", "mlflow", "pandas", "numpy", "prefect"} & set(ast.literal_eval(loaded))


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom deepmoji.cli import cli\ncli.main(['--help'], standalone_mode=False)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "mlflow", "pandas", "numpy", "pyarrow", "sklearn"} & set(ast.literal_eval(done.stderr))


@pytest.mark.parametrize("name", ["mlflow", "docker", "prefect", "dvc", "torch", "emoji", "great_expectations"])
def test_no_folder_shadows_a_dependency(name: str, project_root: Path) -> None:
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    assert "site-packages" in found.origin


def test_data_folders_hold_no_python(project_root: Path) -> None:
    assert [*(project_root / "mlflow").rglob("*.py"), *(project_root / "docker").rglob("*.py")] == []


def test_layout(project_root: Path) -> None:
    wanted = (
        "flows deepmoji data.dvc dvc.yaml tests mlflow docker pyproject.toml README.md CHANGELOG.md CONTRIBUTING.md"
    )
    assert [name for name in [*wanted.split(), "LICENSE", "params.yaml"] if not (project_root / name).exists()] == []


def test_the_sample_is_known_by_the_name_that_data_dvc_has_for_it(project_root: Path) -> None:
    (out,) = yaml.safe_load((project_root / "data.dvc").read_text())["outs"]
    assert out["md5"] == sample.MD5


def test_the_flow_runs_every_stage_in_order(project_root: Path) -> None:
    from flows.pipeline import STAGES

    pipeline = yaml.safe_load((project_root / "dvc.yaml").read_text())
    assert tuple(pipeline["stages"]) == STAGES
    assert set(STAGES) <= set(cli.commands)


def test_the_code_of_a_module_is_what_it_imports_at_any_depth() -> None:
    assert code_of("phases") == {"phases"}
    assert code_of("schedules") == {"phases", "schedules"}
    assert {"training", "optimiser", "model", "probe", "owntable"} <= code_of("finetuning")
    # `report` is imported inside of a function; what only types need, and what shapes no number, is left out.
    assert "report" in code_of("benchmark") and "config" not in code_of("baselines")
    assert not {"errors", "provenance"} & code_of("cli") and "stages" in code_of("cli")


def test_stages_depend_on_the_code_they_run(project_root: Path) -> None:
    """All of it: a stage whose code changed must run again. Messages and progress do not shape what is written."""
    roots = {
        "ingest": ("corpus",),
        "datasets": ("datasets",),
        "validate": ("validation",),
        "tokenize": ("tokens", "validation"),
        "pretrain": ("pretraining",),
        "finetune": ("finetuning",),
        "benchmark": ("benchmark",),
    }
    stages = yaml.safe_load((project_root / "dvc.yaml").read_text())["stages"]
    for stage, names in roots.items():
        given = {Path(path).stem for path in stages[stage]["deps"] if re.fullmatch(r"deepmoji/\w+\.py", path)}
        assert given == code_of(*names), stage


def test_ingest_depends_on_the_label_set_that_it_reads(project_root: Path) -> None:
    labels = load_params(project_root / "params.yaml").ingest.labels
    deps = yaml.safe_load((project_root / "dvc.yaml").read_text())["stages"]["ingest"]["deps"]
    assert f"deepmoji/data/{labels}.txt" in deps and (project_root / "deepmoji" / "data" / f"{labels}.txt").is_file()


def test_the_lock_is_of_this_code(project_root: Path) -> None:
    """Else a clean clone would run stages again whose results are said to be known: commit what `make run` leaves."""
    stages = yaml.safe_load((project_root / "dvc.lock").read_text())["stages"].values()
    known = {dep["path"]: dep["md5"] for stage in stages for dep in stage["deps"] if dep["path"].endswith(".py")}
    assert len(known) > 30
    given = {name: hashlib.md5((project_root / name).read_bytes()).hexdigest() for name in known}
    assert {name for name in known if known[name] != given[name]} == set()


def test_every_parameter_reaches_a_stage_of_dvc(project_root: Path) -> None:
    """A key that no stage depends on could be changed without anything being run again."""
    content = yaml.safe_load((project_root / "params.yaml").read_text())
    used = set()
    for stage in yaml.safe_load((project_root / "dvc.yaml").read_text())["stages"].values():
        used |= set(stage["params"])
    # `preset` is a name; what it stands for are the other keys.
    loose = [
        f"{section}.{key}"
        for section, keys in content.items()
        if isinstance(keys, dict) and section != "drift"  # of a flow: it decides what is run, not what comes out
        for key in keys
        if section not in used and f"{section}.{key}" not in used
    ]
    assert loose == []
    assert "data" in used


def test_stage_options_are_the_section_of_their_stage(project_root: Path) -> None:
    """Each key of params.yaml is an argument of its stage's function, and the other way round."""
    import inspect

    from deepmoji import benchmark, corpus, finetuning, pretraining, tokens, validation

    params = load_params(project_root / "params.yaml")
    given = {"report", "report_seed", "checkpoints", "method", "map_shards", "work", "shard_rows", "kept"}
    functions: dict[str, Callable[..., Any]] = {
        "ingest": corpus.ingest,
        "validate": validation.validate,
        "tokenize": tokens.tokenize_corpus,
        "pretrain": pretraining.pretrain,
        "finetune": finetuning.finetune,
        "benchmark": benchmark.benchmark,
    }
    for stage, function in functions.items():
        names = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        if stage == "benchmark":
            names -= {"methods", "seeds"}  # of the section finetune
            names -= {"start"}  # of an own table
        assert names - given == set(params.section(stage)) - {"tweets", "methods", "max_unknown_share"}, stage


@pytest.mark.parametrize("preset", ["sample", "laptop", "starter", "paper", "table"])
def test_presets_are_whole(preset: str, project_root: Path) -> None:
    params = load_params(project_root / "presets" / f"{preset}.yaml")
    assert isinstance(params, Params)
    assert params.preset == preset


def test_the_sample_is_the_preset_in_force(project_root: Path) -> None:
    assert (project_root / "params.yaml").read_text() == (project_root / "presets" / "sample.yaml").read_text()


def test_readme_commands_exist(project_root: Path) -> None:
    readme = (project_root / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (project_root / "Makefile").read_text(), re.MULTILINE))
    blocks = "\n".join(re.findall(r"```(?:sh|bash|console)\n(.*?)```", readme, re.DOTALL))
    assert set(re.findall(r"\bmake ([a-z]+)", readme)) <= targets
    used = set(re.findall(r"(?:^|/|\s)deepmoji ([a-z-]+)", blocks))
    assert used
    assert used <= set(cli.commands)
    assert {"make run", "make test"} <= set(re.findall(r"make (?:run|test)\b", readme))


def test_every_command_is_in_the_readme(project_root: Path) -> None:
    readme = (project_root / "README.md").read_text()
    assert [name for name in cli.commands if f"deepmoji {name}" not in readme] == []


def test_runbook_commands_exist(project_root: Path) -> None:
    """Each situation in at most five lines, and no command that is not there."""
    from flows.__main__ import cli as flows_cli

    book = (project_root / "RUNBOOK.md").read_text()
    for section in book.split("\n## ")[1:]:
        assert 2 <= len(section.strip().splitlines()[1:]) <= 5, section
    code = "\n".join(re.findall(r"`([^`]+)`", book))
    targets = set(re.findall(r"^([a-z]+):", (project_root / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", code, re.MULTILINE)) <= targets
    assert set(re.findall(r"^python -m flows ([a-z-]+)", code, re.MULTILINE)) <= set(flows_cli.commands)
    assert all((project_root / script).is_file() for script in re.findall(r"^python (\S+\.py)", code, re.MULTILINE))
    used = re.findall(r"^deepmoji (?:-v )?([a-z][a-z-]*)(?: ([a-z-]+))?", code, re.MULTILINE)
    assert len(used) > 10
    for name, below in used:
        command = cli.commands[name]
        assert not isinstance(command, click.Group) or below in command.commands or not below, (name, below)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert len(result.output.split("\n")[2].strip()) > 20


def test_installed_is_what_was_tested(project_root: Path) -> None:
    """Major and minor of every direct dependency are those of constraints.txt."""
    pins = dict(
        line.split("==")
        for line in (project_root / "constraints.txt").read_text().split()
        if "==" in line and not line.startswith("#")
    )
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    wrong = []
    for entry in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(entry)
        if requirement.name == "deepmoji":
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        installed, pinned = Version(importlib.metadata.version(name)), Version(pins[name])
        if (installed.major, installed.minor) != (pinned.major, pinned.minor):
            wrong.append(f"{name}: installed {installed}, tested {pinned}")
    assert wrong == []


def test_nothing_large_is_in_git(project_root: Path) -> None:
    names = subprocess.run(
        ["git", "-C", str(project_root), "ls-files"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split("\n")
    large = [n for n in names if n and (project_root / n).is_file() and (project_root / n).stat().st_size > 2**20]
    assert large == ["deepmoji/data/starter/model.safetensors"]  # tests/test_evaluation.py limits its size
