"""The door to MLflow: where it is, and one run per execution of a stage.

Without MLFLOW_TRACKING_URI everything lies below `<root>/.state/mlflow`, in an sqlite database and a folder of
artifacts, both absolute, because MLflow would otherwise place them relative to the working folder.
MLflow takes over a second to import, so only the functions here do it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deepmoji.errors import DeepMojiError, RegistryError, ServiceError, UsageError
from deepmoji.provenance import UNKNOWN, provenance
from deepmoji.provenance import hide_secrets as hide_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient as MlflowClient  # `as`: registry names these types through this module
    from mlflow.entities import DatasetInput, Metric
    from mlflow.entities.model_registry import ModelVersion as ModelVersion

log = logging.getLogger(__name__)

EXPERIMENTS = ("ingest", "datasets", "validate", "tokenize", "pretrain", "finetune", "benchmark", "release")
BATCH = 1000  # MLflow's own limit of metrics in one request
FLUSH_SECONDS = 10.0
PARAM_LENGTH = 6000  # MLflow's own limit of characters in a parameter
# What a served model imports besides MLflow's own needs.
SERVING_NEEDS = ("mlflow", "torch", "numpy", "pandas", "pyarrow", "safetensors", "text-unidecode")
# Set unless the user has set them: MLflow's defaults wait four minutes for a server that is not there.
SETTINGS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_SECRET_NAME = re.compile(r"(?i)(^|[_.\-])(password|passwd|secret|token|api_?key|access_?key|credentials?)$")


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, else the sqlite database of the project folder `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_state(root) / 'mlflow.db'}"


def prepare(root: Path) -> str:
    """Create or upgrade the database, once even if many processes start together; returns the URI.

    A server prepares its own database, so nothing is done for `http(s)://`. Raises ServiceError.
    """
    uri = tracking_uri(root)
    quiet_mlflow()
    if urlsplit(uri).scheme.startswith("http"):
        return uri
    import mlflow
    from filelock import FileLock

    quiet_mlflow()
    folder = _state(root)
    mark = folder / f"ready-{hashlib.sha256(f'{uri} {mlflow.__version__}'.encode()).hexdigest()[:12]}"
    with asking(uri, "prepare its database"):
        folder.mkdir(parents=True, exist_ok=True)
        file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        if not mark.exists() or (file and not file.exists()):
            _reach(uri)
            with FileLock(folder / "prepare.lock", timeout=120):
                _create_or_upgrade(uri, file)
                mark.touch()
        if uri == f"sqlite:///{folder / 'mlflow.db'}":
            _same_place(client(uri), folder)
    return uri


def _state(root: Path) -> Path:
    # `dvc exp run --temp` runs in a copy of the project that it deletes, and says here where the project is.
    home = os.environ.get("DVC_ROOT") if "DVC_EXP_NAME" in os.environ else None
    return Path(home or root).resolve() / ".state" / "mlflow"


def _create_or_upgrade(uri: str, file: Path | None) -> None:
    database: Any = import_module("mlflow.store.db.utils")
    engine = database.create_sqlalchemy_engine_with_retry(uri)
    if not database._all_tables_exist(engine):
        database._initialize_tables(engine)
    elif database._get_schema_version(engine) != database._get_latest_schema_revision():
        if file:
            # Migrations are not transactional; the copy is what remains if one breaks.
            file.with_suffix(".before-upgrade.db").write_bytes(file.read_bytes())
        database._upgrade_db(engine)
    engine.dispose()


def _reach(uri: str) -> None:
    """Fail after five seconds, not after SQLAlchemy's ten retries, where nobody listens."""
    import socket

    parts = urlsplit(uri)
    if parts.hostname:
        port = parts.port or {"postgresql": 5432, "mysql": 3306, "mssql": 1433}.get(parts.scheme.split("+")[0])
        if port:
            socket.create_connection((parts.hostname, port), timeout=5).close()


def _same_place(door: "MlflowClient", folder: Path) -> None:
    """MLflow stores absolute artifact paths, so a project folder that was moved would write to its old place."""
    for experiment in door.search_experiments(max_results=100):
        place = experiment.artifact_location
        if experiment.name in EXPERIMENTS and not place.removeprefix("file://").startswith(str(folder)):
            raise RegistryError(
                f"The MLflow database in {folder} belongs to a project elsewhere (its artifacts are in {place}): "
                "move the project back, or set that folder aside and start with a new one."
            )


def quiet_mlflow() -> None:
    """Apply SETTINGS, before MLflow is first imported, and lower its log level, which that import sets anew."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # urllib3 warns of each try of its own; what came of them is in the sentence of `asking`.
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger("mlflow").handlers:
        handler.addFilter(_hide_in)


def _hide_in(record: logging.LogRecord) -> bool:
    """A filter of logs that lets all pass, without secrets: MLflow logs the address of a server that is away."""
    record.msg, record.args = hide_secrets(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = hide_secrets(logging.Formatter().formatException(record.exc_info))
    return True


def load() -> None:
    """Import what records runs and registers models: seconds that a flow spends while its stages work."""
    quiet_mlflow()
    for name in ("mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store"):
        import_module(name)
    quiet_mlflow()


def client(uri: str) -> "MlflowClient":
    """A client that talks to `uri` whatever MLflow's global settings say."""
    quiet_mlflow()
    from mlflow import MlflowClient

    quiet_mlflow()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def asking(uri: str, what: str) -> Iterator[None]:
    """Turn whatever MLflow, its database or its artifact store throws into one ServiceError sentence.

    A refused log-in is a UsageError: it is refused again when it is tried again.
    """
    try:
        yield
    except DeepMojiError:
        raise
    except Exception as error:
        if getattr(error, "error_code", "") == "UNAUTHENTICATED":
            raise UsageError(
                f"MLflow at {hide_secrets(uri)} does not know this user and password: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD."
            ) from error
        # Artifact stores raise the errors of their own drivers, which have no base class in common.
        reason = hide_secrets(" ".join(str(_cause(error)).split()))
        raise ServiceError(
            f"MLflow at {hide_secrets(uri)} could not {what} ({reason or type(error).__name__:.300}): see that it runs "
            "and may write, or unset MLFLOW_TRACKING_URI to use the project's own database."
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What the operating system said, where it said something: HTTP libraries bury it under their own words."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found
        found = found.__cause__ or found.__context__
    return error


def key(name: str) -> str:
    """A name that MLflow takes for a parameter or metric: other characters become their Unicode names."""

    def spell(character: str) -> str:
        if re.match(r"[\w.\- /:]", character):
            return character
        return unicodedata.name(character, f"u{ord(character):04x}").lower().replace(" ", "_")

    return "".join(map(spell, name))[:250]


def parameters(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow stores them: text, JSON for all but strings, without secrets."""
    shown = {}
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        text = "***" if _SECRET_NAME.search(name) else hide_secrets(text)
        if len(text) > PARAM_LENGTH:
            text = f"{text[: PARAM_LENGTH - 40]}... (cut, {len(text)} characters)"
        shown[key(name)] = text
    return shown


class Run:
    """An open MLflow run. Metrics are gathered and sent in batches, so that thousands of steps cost little."""

    def __init__(self, door: "MlflowClient", uri: str, experiment_id: str, run_id: str, tags: dict[str, str]) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.uri = uri
        self.client = door
        self.tags = tags
        self._inputs: dict[str, DatasetInput] = {}
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()

    def metrics(self, numbers: Mapping[str, float], step: int = 0) -> None:
        """Numbers by name at a step. A server that is away for a while costs a warning; they are sent later."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(key(name), float(value), now, int(step)) for name, value in numbers.items()]
        if len(self._waiting) >= BATCH or time.monotonic() - self._sent > FLUSH_SECONDS:
            try:
                self.flush()
            except ServiceError as error:
                log.warning("%d metrics wait: %s", len(self._waiting), error)

    def flush(self) -> None:
        """Send what waits; raises ServiceError and keeps the rest if that fails."""
        self._sent = time.monotonic()
        while self._waiting:
            with asking(self.uri, "store metrics"):
                self.client.log_batch(self.run_id, metrics=self._waiting[:BATCH])
            del self._waiting[:BATCH]

    def dataset(self, name: str, digest: str, source: str, rows: int | None = None) -> None:
        """Name the data that went in: its digest (at most 36 characters), where it lay, how many rows if known."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entry = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local",
            source=json.dumps({"uri": hide_secrets(source)}),
            profile=None if rows is None else json.dumps({"num_rows": rows}),
        )
        self._inputs[name] = DatasetInput(entry, [InputTag("mlflow.data.context", "input")])
        with asking(self.uri, f"record the dataset {name}"):
            self.client.log_inputs(self.run_id, [self._inputs[name]])

    def artifacts(self, path: Path) -> None:
        """Keep a file, or a folder under its own name, with the run."""
        if not path.exists():
            raise FileNotFoundError(path)
        with asking(self.uri, f"store {path.name}"):
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), path.name)
            else:
                self.client.log_artifact(self.run_id, str(path))

    def tag(self, name: str, value: str) -> None:
        with asking(self.uri, f"store the tag {name}"):
            self.client.set_tag(self.run_id, key(name), hide_secrets(value))

    def child(
        self,
        name: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        began: float | None = None,
        dataset: str | None = None,
    ) -> str:
        """A finished run below this one, as for one seed of a method on a dataset; returns its id.

        began: when its work did, in seconds since 1970; None: just now. dataset: the name of this run's data that
        went into the child.
        """
        tags = self.tags | {key(k): str(v) for k, v in params.items()} | {"mlflow.parentRunId": self.run_id}
        with asking(self.uri, f"record the run {name}"):
            start = None if began is None else round(began * 1000)
            made = self.client.create_run(self.experiment_id, start, tags, name)
            if dataset is not None:
                self.client.log_inputs(made.info.run_id, [self._inputs[dataset]])
        run = Run(self.client, self.uri, self.experiment_id, made.info.run_id, tags)
        run.parameters(params)
        run.metrics(metrics)
        run.flush()
        run.end("FINISHED")
        return run.run_id

    def parameters(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(name, text) for name, text in parameters(values).items()]
        with asking(self.uri, "store parameters"):
            for start in range(0, len(entries), 100):  # MLflow's limit in one request
                self.client.log_batch(self.run_id, params=entries[start : start + 100])

    def end(self, status: str) -> None:
        with asking(self.uri, "end the run"):
            self.client.set_terminated(self.run_id, status)


@contextmanager
def start_run(
    root: Path,
    experiment: str,
    name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent: str | None = None,
    description: str = "",
) -> Iterator[Run]:
    """Open a run in `experiment`; it ends FINISHED, FAILED on an exception, KILLED on Ctrl-C.

    Always tagged with `provenance(root)` and the process, so that the next run of the experiment can mark one
    whose process died. `parent` is the run id that it stands below. Raises ServiceError.
    """
    uri = prepare(root)
    door = client(uri)
    every = provenance(root) | {k: hide_secrets(str(v)) for k, v in tags.items()} | {"process": _process()}
    every |= {"mlflow.source.name": f"deepmoji {experiment}", "mlflow.source.type": "LOCAL"}
    if every["git_commit"] != UNKNOWN:
        every["mlflow.source.git.commit"] = every["git_commit"]
    if parent:
        every["mlflow.parentRunId"] = parent
    with asking(uri, f"start the run {name}"):
        experiment_id = _experiment(door, uri, root, experiment)
        _bury_dead(door, experiment_id)
        note = {"mlflow.note.content": description} if description else {}
        run_id = door.create_run(experiment_id, tags=every | note, run_name=name).info.run_id
    run = Run(door, uri, experiment_id, run_id, every)
    try:
        run.parameters(params)
        with _system_metrics(run_id, uri):
            yield run
        run.flush()
    except BaseException as error:
        # The run's own failure is what the user must see, not that MLflow could not note it down.
        try:
            run.flush()
            run.tag("error", f"{type(error).__name__}: {error}"[:500])
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except ServiceError as second:
            log.warning("the run %s stays open: %s", run_id, second)
        raise
    run.end("FINISHED")


def _experiment(door: "MlflowClient", uri: str, root: Path, name: str) -> str:
    from mlflow.exceptions import MlflowException

    # A server chooses where its artifacts lie; beside a plain database only we can.
    place = None if uri.startswith("http") else str(_state(root) / "artifacts" / name)
    found = door.get_experiment_by_name(name)
    if found is None:
        with suppress(MlflowException):  # another process was faster
            return str(door.create_experiment(name, artifact_location=place))
        found = door.get_experiment_by_name(name)
    if found is None:
        raise ServiceError(f"MLflow at {hide_secrets(uri)} neither has nor makes the experiment {name!r}.")
    return str(found.experiment_id)


@contextmanager
def _system_metrics(run_id: str, uri: str) -> Iterator[None]:
    """CPU, memory, disk, network and GPU use every ten seconds, in a thread that never fails the run."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]


def log_model(run: Run, folder: Path, name: str) -> str:
    """Log a model folder with the run, as code and data for MLflow to serve (deepmoji/pyfunc.py); returns its URI.

    The package's code goes along, so that `mlflow models serve` needs nothing but the logged requirements.
    """
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    package = Path(__file__).parent
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema(
            [ParamSpec("output", DataType.string, "predict"), ParamSpec("top_k", DataType.long, 5)],
        ),
    )
    with (
        asking(run.uri, f"store the model {name}"),
        everywhere(run.uri),
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as place,
    ):
        # Without the starter model, which would weigh more than most models that are logged.
        code = Path(place) / package.name
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__", "starter"))
        warnings.simplefilter("ignore")  # MLflow warns of type hints of its own, and uses what pandas gave up
        # Made here, since MLflow would put it into whatever experiment is its global one, below the working folder.
        entry = run.client.create_logged_model(run.experiment_id, name=name, source_run_id=run.run_id)
        logged = Model.log(
            artifact_path=None,
            flavor=import_module("mlflow.pyfunc"),
            run_id=run.run_id,
            model_id=entry.model_id,
            python_model=str(package / "pyfunc.py"),
            artifacts={"model": str(folder.resolve())},
            code_paths=[str(code)],
            signature=signature,
            input_example=(pd.DataFrame({"text": ["I love mom's cooking"]}), {"output": "predict", "top_k": 5}),
            pip_requirements=[f"{needed}=={version(needed)}" for needed in SERVING_NEEDS],
        )
        run.client.finalize_logged_model(entry.model_id, "READY")
        return str(logged.model_uri)


def download_model(root: Path, door: "MlflowClient", uri: str, name: str, version: str) -> Path:
    """The model folder of a registered version: where it lies on this machine, else fetched once into the project."""
    from mlflow.artifacts import download_artifacts

    with asking(uri, f"fetch {name} version {version}"):
        place = door.get_model_version_download_uri(name, version)
        local = Path(place.removeprefix("file://"))
        if not local.is_dir():
            local = root.resolve() / ".state" / "models" / hashlib.sha256(f"{uri} {place}".encode()).hexdigest()[:16]
            if not local.is_dir():
                local.parent.mkdir(parents=True, exist_ok=True)
                beside = Path(tempfile.mkdtemp(dir=local.parent, prefix=".fetching-"))
                download_artifacts(artifact_uri=place, dst_path=str(beside), tracking_uri=uri)
                with suppress(OSError):  # another process was faster
                    beside.rename(local)
    found = sorted(local.rglob("model.safetensors"))
    if len(found) != 1:
        raise RegistryError(f"{name} version {version} holds {len(found)} model folders in {local}: register it anew.")
    return found[0].parent


@contextmanager
def everywhere(uri: str) -> Iterator[None]:
    """MLflow's model functions know only its global address, which it keeps in the environment too; put it back."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None makes MLflow forget it


def _process() -> str:
    import platform

    import psutil

    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _bury_dead(door: "MlflowClient", experiment_id: str) -> None:
    """Mark KILLED what a killed process of this machine left running."""
    import psutil

    here = _process().split()[0]
    for run in door.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=100):
        host, pid, started = [*run.data.tags.get("process", "").split(), "", "", ""][:3]
        if host != here or not pid.isdigit():
            continue
        try:
            alive = f"{psutil.Process(int(pid)).create_time():.0f}" == started
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            door.set_terminated(run.info.run_id, "KILLED")
