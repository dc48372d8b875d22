"""The model registry: versions with their numbers and origin, a champion, and the way back.

A version's numbers and facts are its tags; the alias `champion` says which one answers, `challenger` which one was
registered last and has not been judged. What happened to the champion stands in the tag `history` of the registered
model, a JSON list. Changes take a file lock, and look again after they wrote, for those that come from elsewhere.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepmoji import tracking
from deepmoji.config import find_project
from deepmoji.errors import InputError, RegistryError, UsageError
from deepmoji.gates import Gates, absolute_faults, load_gates, relative_faults
from deepmoji.provenance import UNKNOWN, provenance
from deepmoji.starter import STARTER, starter_folder

if TYPE_CHECKING:
    from deepmoji.inference import Model
    from deepmoji.tracking import MlflowClient, ModelVersion

__all__ = [
    "champion", "check_name", "compare", "default_model", "find", "home", "list_models", "load", "load_gates",
    "promote", "register", "resolve", "rollback", "show", "table", "was_rolled_back",
]  # fmt: skip

NAME = "deepmoji"
CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY = "history"
NUMBER = "number."  # prefix of the tags that hold a version's numbers
KEPT_EVENTS = 200
_URI = re.compile(r"models:/([\w.-]+)(?:@([\w.-]+)|/(\d+))")

Evaluate = Callable[[Path], Mapping[str, float]]


@dataclass(frozen=True)
class Registry:
    """An open registry. Errors of MLflow are turned into sentences by `asking`, in the functions below."""

    root: Path
    uri: str
    client: "MlflowClient"


def register(
    root: Path, folder: Path, name: str = NAME, *, tags: Mapping[str, str], metrics: Mapping[str, float]
) -> int:
    """Log a model folder, register it under `name` with alias `challenger`, and return the version's number.

    tags: facts for the gates, above all `data`, a digest of the data that the numbers were measured on; commit, code
    and dvc.lock are added. metrics: the numbers that the gates judge. ServiceError; InputError: not a model folder.
    """
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} is not a whole model folder: train first, or name another folder.")
    check_name(name)
    with tracking.start_run(root, "release", f"register {name}", params={"model": name}, tags=tags) as run:
        run.metrics(metrics)
        run.flush()
        uri = tracking.log_model(run, folder, name)
        registry = _open(root)
        facts = {"data": UNKNOWN} | {key: value for key, value in run.tags.items() if not key.startswith("mlflow.")}
        numbers = _number_tags(metrics)
        with _changing(registry, f"register {name}"), tracking.everywhere(registry.uri):
            if _find(registry, name) is None:
                registry.client.create_registered_model(name)
            made = registry.client.create_model_version(
                name, source=uri, run_id=run.run_id, tags=facts | numbers, model_id=uri.rpartition("/")[2]
            )
            registry.client.set_registered_model_alias(name, CHALLENGER, made.version)
        run.tag("version", str(made.version))
    return int(made.version)


def find(
    root: Path, tag: str, value: str, name: str = NAME, *, metrics: Mapping[str, float] | None = None
) -> int | None:
    """The newest version whose tag has this value, None if there is none.

    With `metrics`, None too if that version has other numbers, or lacks a fact that is known by now: it would stay
    refused for them for ever.
    """
    registry = _open(root)
    versions = _versions(registry, name) if _find(registry, name) is not None else []
    newest = next((version for version in versions if version.tags.get(tag) == value), None)
    if newest is None:
        return None
    if metrics is not None:
        numbers = {key: text for key, text in newest.tags.items() if key.startswith(NUMBER)}
        gained = [key for key, fact in provenance(root).items() if newest.tags.get(key) == UNKNOWN != fact]
        if numbers != _number_tags(metrics) or gained:
            return None
    return int(newest.version)


def was_rolled_back(root: Path, version: int, name: str = NAME) -> bool:
    """Whether the last change of the champion that concerns this version took the alias from it by a rollback."""
    events = [event for event in _history(_open(root), name) if version in (event["version"], event["before"])]
    return bool(events) and events[-1]["action"] == "rollback" and bool(events[-1]["before"] == version)


def champion(root: Path, name: str = NAME) -> int | None:
    """The champion's version, None while there is none."""
    return _champion(_open(root, reading=True), name)


def promote(
    root: Path, version: int | str, gates: Gates, *, name: str = NAME, evaluate: Evaluate | None = None
) -> None:
    """Make a version the champion if it passes every gate; RegistryError names all numbers that fell short.

    `evaluate` measures the champion's folder anew where its numbers come from other data than the challenger's;
    without it such a pair is refused, since the numbers do not compare.
    """
    registry = _open(root, reading=True)
    chosen = _version(registry, version, name)
    name = chosen.name  # the version may be given as NAME/NUMBER
    before = _champion(registry, name)
    if before == int(chosen.version):
        raise RegistryError(f"{name} version {before} is the champion already.")
    faults = absolute_faults(gates, _numbers(chosen), chosen.tags)
    if not faults and before is not None and gates.maximum_drop:
        holder = _version(registry, before, name)
        faults = relative_faults(gates, _numbers(chosen), _comparable(registry, gates, holder, chosen, evaluate))
    if faults:
        _note(registry, chosen, "refused", "; ".join(faults))
        raise RegistryError(f"{name} version {chosen.version} may not be champion: {'; '.join(faults)}.")
    with _changing(registry, f"promote {name} version {chosen.version}"):
        _crown(registry, name, int(chosen.version), before, "promote")
        if _find_alias(registry, name, CHALLENGER) == int(chosen.version):
            registry.client.delete_registered_model_alias(name, CHALLENGER)


def rollback(root: Path, name: str = NAME) -> int:
    """Make the champion before this one the champion again, and return its version; again, to go further back."""
    registry = _open(root, reading=True)
    with _changing(registry, f"roll {name} back"):
        current = _champion(registry, name)
        line = _line(_history(registry, name))
        while line and line[-1] == current:
            line.pop()
        if current is None or not line:
            raise RegistryError(f"No version of {name} was champion before: there is nothing to roll back to.")
        _version(registry, line[-1], name)
        _crown(registry, name, line[-1], current, "rollback")
    return line[-1]


def list_models(root: Path) -> list[dict[str, Any]]:
    """Every version of every registered model, newest first: name, version, aliases, numbers, commit, data, time."""
    registry = _open(root, reading=True)
    with tracking.asking(registry.uri, "list the models"):
        models = registry.client.search_registered_models()
        return [
            {
                "name": model.name,
                "version": int(version.version),
                "aliases": " ".join(
                    sorted(alias for alias, v in model.aliases.items() if str(v) == str(version.version))
                ),
                **_numbers(version),
                "commit": version.tags.get("git_commit", UNKNOWN)[:8],
                "data": version.tags.get("data", UNKNOWN)[:8],
                "registered": _time(version.creation_timestamp),
            }
            for model in sorted(models, key=lambda model: model.name)
            for version in _versions(registry, model.name)
        ]


def show(root: Path, version: int | str, name: str = NAME) -> dict[str, Any]:
    """Everything known of one version: numbers, tags, where its run is, and its part of the history."""
    registry = _open(root, reading=True)
    found = _version(registry, version, name)
    history = [event for event in _history(registry, found.name) if event["version"] == int(found.version)]
    return {
        "name": found.name,
        "version": int(found.version),
        "champion": _champion(registry, found.name) == int(found.version),
        "registered": _time(found.creation_timestamp),
        "run": found.run_id,
        "numbers": _numbers(found),
        "tags": {key: value for key, value in sorted(found.tags.items()) if not key.startswith(NUMBER)},
        "history": history,
    }


def compare(root: Path, first: int | str, second: int | str, name: str = NAME) -> list[dict[str, Any]]:
    """A row per number of two versions, with the difference; and a row that says if the data was the same."""
    registry = _open(root, reading=True)
    a, b = _version(registry, first, name), _version(registry, second, name)
    left, right = _numbers(a), _numbers(b)
    heads = (f"{a.name} {a.version}", f"{b.name} {b.version}")
    rows: list[dict[str, Any]] = [
        {
            "number": key,
            heads[0]: left.get(key),
            heads[1]: right.get(key),
            "difference": right[key] - left[key] if key in left and key in right else None,
        }
        for key in sorted(left.keys() | right.keys())
    ]
    facts = [x.tags.get("data", UNKNOWN) for x in (a, b)]
    same = "same data" if facts[0] == facts[1] != UNKNOWN else "other data"
    return [*rows, {"number": "data", heads[0]: facts[0][:8], heads[1]: facts[1][:8], "difference": same}]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text, a column per key in order of appearance."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    if not heads:
        return "nothing is registered yet"
    cells = [heads, *([_cell(row.get(head)) for head in heads] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def resolve(path_or_uri: str | Path, root: Path) -> Path:
    """The local folder of a path, of `models:/deepmoji@champion`, of `models:/deepmoji/3` or of `starter`."""
    return _resolve(path_or_uri, root)[0]


def home(project: Path | None = None) -> Path | None:
    """The project of that folder, of DEEPMOJI_PROJECT or of the working folder; None outside of any.

    Where MLFLOW_TRACKING_URI names a server and no project is named, a service needs none: the user's cache then takes
    what is fetched. UsageError: the folder that is named is in no project.
    """
    named = project or os.environ.get("DEEPMOJI_PROJECT")
    if named:
        return find_project(Path(named).resolve())
    with suppress(UsageError):
        return find_project(Path.cwd())
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepmoji"
    return None


def default_model(root: Path | None) -> str:
    """What answers when no model is named: the project's champion, or the starter model while there is none.

    RegistryError: there is a registry, and it cannot be used.
    """
    if root is None or _is_missing(tracking.tracking_uri(root)) or champion(root) is None:
        return STARTER
    return f"models:/{NAME}@{CHAMPION}"


def load(path_or_uri: str | Path, *, root: Path | None = None, **options: Any) -> "Model":
    """The model of a folder, of a registry URI or of the name `starter`; options as for `inference.load_folder`.

    The registry is the one of the project `root`, by default of `home`; where MLFLOW_TRACKING_URI names a server, its,
    and that folder keeps what is fetched. RegistryError: no such model; InputError: not a model folder; UsageError: a
    URI outside of any project, and no server named.
    """
    from deepmoji.inference import load_folder

    folder, name = _resolve(path_or_uri, root)
    return load_folder(folder, **({"name": name} | options))


# --- inside ---------------------------------------------------------------------------------------------------------


def _open(root: Path, reading: bool = False) -> Registry:
    uri = tracking.tracking_uri(root)
    if reading and _is_missing(uri):
        raise RegistryError(f"Nothing was ever registered in {root.resolve()}: run the pipeline first (`make run`).")
    tracking.prepare(root)
    return Registry(root, uri, tracking.client(uri))


def _is_missing(uri: str) -> bool:
    """Whether `uri` is a database file that was never made; asking MLflow would make it."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file()


@contextmanager
def _changing(registry: Registry, what: str) -> Iterator[None]:
    from filelock import FileLock

    folder = registry.root.resolve() / ".state" / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    with tracking.asking(registry.uri, what), FileLock(folder / "registry.lock", timeout=60):
        yield


def check_name(name: str) -> None:
    """UsageError unless `name` can be a registered model's, and a folder's."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"The model name {name!r} is not usable: take letters, digits, dot, dash and underscore.")


def _find(registry: Registry, name: str) -> Any:
    check_name(name)
    with tracking.asking(registry.uri, f"look for {name}"):
        found = registry.client.search_registered_models(f"name='{name}'")
    return found[0] if found else None


def _find_alias(registry: Registry, name: str, alias: str) -> int | None:
    model = _find(registry, name)
    return int(model.aliases[alias]) if model is not None and alias in model.aliases else None


def _champion(registry: Registry, name: str) -> int | None:
    return _find_alias(registry, name, CHAMPION)


def _versions(registry: Registry, name: str) -> "list[ModelVersion]":
    with tracking.asking(registry.uri, f"list the versions of {name}"):
        found: list[ModelVersion] = []
        token = None
        while True:
            page = registry.client.search_model_versions(f"name='{name}'", max_results=500, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda version: -int(version.version))


def _version(registry: Registry, version: int | str, name: str) -> "ModelVersion":
    """A version by number, by alias, or as NAME/NUMBER or NAME@ALIAS."""
    asked = str(version).removeprefix("models:/")
    if "/" in asked or "@" in asked:
        name, asked = re.split("[/@]", asked, maxsplit=1)
    known = _versions(registry, name) if _find(registry, name) is not None else []
    number = asked if asked.isdigit() else str(_find_alias(registry, name, asked))
    for candidate in known:
        if str(candidate.version) == number:
            return candidate
    there = ", ".join(str(candidate.version) for candidate in known[::-1]) or "none"
    raise RegistryError(f"{name} has no version {asked!r}: there is {there}.")


def _numbers(version: "ModelVersion") -> dict[str, float]:
    return {
        key.removeprefix(NUMBER): float(value) for key, value in sorted(version.tags.items()) if key.startswith(NUMBER)
    }


def _comparable(
    registry: Registry, gates: Gates, holder: "ModelVersion", chosen: "ModelVersion", evaluate: Evaluate | None
) -> Mapping[str, float]:
    """The champion's numbers on the challenger's data."""
    facts = [version.tags.get(gates.same_data, UNKNOWN) for version in (holder, chosen)]
    if facts[0] == facts[1]:
        return _numbers(holder)
    if evaluate is None:
        raise RegistryError(
            f"{chosen.name} versions {holder.version} (champion) and {chosen.version} were measured on other data "
            f"({facts[0][:8]}, {facts[1][:8]}), so their numbers do not compare: "
            "measure the champion on the new data first."
        )
    folder = tracking.download_model(registry.root, registry.client, registry.uri, holder.name, holder.version)
    # A number that cannot be measured again is named as missing by relative_faults.
    return dict(evaluate(folder))


def _crown(registry: Registry, name: str, version: int, before: int | None, action: str) -> None:
    """Move the alias, then write it down; in this order, since `rollback` trusts the alias."""
    if _champion(registry, name) != before:
        raise RegistryError(f"The champion of {name} changed meanwhile: look at it and try again.")
    event = {"time": _now(), "action": action, "version": version, "before": before}
    history = [*_history(registry, name), event][-KEPT_EVENTS:]
    registry.client.set_registered_model_alias(name, CHAMPION, str(version))
    registry.client.set_registered_model_tag(name, HISTORY, json.dumps(history))
    registry.client.set_model_version_tag(name, str(version), f"last_{action}", event["time"])
    if _champion(registry, name) != version:
        raise RegistryError(f"Somebody else changed the champion of {name} at the same time: look at it and try again.")


def _number_tags(metrics: Mapping[str, float]) -> dict[str, str]:
    return {NUMBER + tracking.key(key): repr(float(value)) for key, value in metrics.items()}


def _note(registry: Registry, version: "ModelVersion", key: str, text: str) -> None:
    with tracking.asking(registry.uri, f"note that version {version.version} was {key}"):
        registry.client.set_model_version_tag(version.name, version.version, key, f"{_now()} {text}"[:5000])


def _history(registry: Registry, name: str) -> list[dict[str, Any]]:
    model = _find(registry, name)
    text = model.tags.get(HISTORY, "[]") if model is not None else "[]"
    try:
        return list(json.loads(text))
    except ValueError:
        raise RegistryError(f"The tag {HISTORY!r} of {name} is not the JSON list it was: mend or delete it.") from None


def _line(history: list[dict[str, Any]]) -> list[int]:
    """The champions in order, those left out that were rolled back."""
    line: list[int] = []
    for event in history:
        if event["action"] == "promote":
            line.append(event["version"])
        elif len(line) > 1:
            line.pop()
    return line


def _resolve(path_or_uri: str | Path, root: Path | None) -> tuple[Path, str]:
    text = str(path_or_uri)
    if text == STARTER:
        return starter_folder(), STARTER
    if not text.startswith("models:"):
        if not Path(path_or_uri).exists():
            raise InputError(f"There is no model {text}: name {STARTER}, a model folder or models:/NAME/VERSION.")
        return Path(path_or_uri), text
    parts = _URI.fullmatch(text)
    if parts is None:
        raise UsageError(f"{text!r} is no model URI: write models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, alias, number = parts.groups()
    registry = _open(root or home() or find_project(Path.cwd()), reading=True)
    found = _version(registry, number or alias, name)
    folder = tracking.download_model(registry.root, registry.client, registry.uri, name, found.version)
    return folder, f"models:/{name}/{found.version}{_origin(found)}"


def _origin(version: "ModelVersion") -> str:
    """What a reader of answers must know: a model of the sample has seen no real text."""
    if version.tags.get("synthetic") == "yes":
        return " (trained on the synthetic sample)"
    preset = version.tags.get("preset", "")
    return f" (preset {preset})" if preset else ""


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
