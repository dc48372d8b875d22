"""What prefect.yaml says, registered with a Prefect server: work pools with their queues, and deployments.

Prefect's own command reads the deployments of that file; the pools that they name and the limits of queues are made
here. A server is needed: the one of PREFECT_API_URL, or the one that `python -m flows up` runs.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Crashed

from deepmoji.errors import DeepMojiError, ServiceError, UsageError

FILE = "prefect.yaml"


def read(root: Path) -> dict[str, Any]:
    """The content of prefect.yaml. UsageError when it is missing, no YAML, or a deployment names no known pool."""
    path = root / FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        named = {entry["name"]: entry["work_pool"]["name"] for entry in content["deployments"]}
        pools = {str(name): dict(pool["queues"]) for name, pool in content["work_pools"].items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{path} does not describe work pools with queues, and deployments with a pool ({reason:.200}): mend it."
        ) from None
    if unknown := sorted(set(named.values()) - set(pools)):
        raise UsageError(f"{path} sends runs to {unknown[0]}, which it does not describe: add it below work_pools.")
    return dict(content)


def need_server() -> str:
    """The API address of the server. ServiceError when none is named and `up` does not run."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ServiceError(
            "No Prefect server runs for this project: start one with `make up`, or name one by PREFECT_API_URL."
        )
    return url.rstrip("/")


def make_pools(root: Path) -> list[str]:
    """Create or update the work pools that deployments name, with their queues; returns the names of the pools."""
    content = read(root)
    names = sorted({entry["work_pool"]["name"] for entry in content["deployments"]})
    with get_client(sync_client=True) as client:
        for name in names:
            pool = content["work_pools"][name]
            try:
                # The first worker fills in the template of its type.
                client.create_work_pool(
                    WorkPoolCreate(name=name, type=pool["type"], description=pool.get("description"))
                )
            except ObjectAlreadyExists:
                found = client.read_work_pool(name).type
                if found != pool["type"]:
                    raise UsageError(
                        f"The server has a work pool {name} of type {found}, {FILE} wants {pool['type']}: delete the "
                        f"pool (`prefect work-pool delete {name}`) or rename it in {FILE}."
                    ) from None
            for queue, options in pool["queues"].items():
                _make_queue(client, name, queue, options)
    return names


def _make_queue(client: SyncPrefectClient, pool: str, queue: str, options: Mapping[str, Any]) -> None:
    with suppress(ObjectAlreadyExists):
        client.create_work_queue(queue, work_pool_name=pool)
    found = client.read_work_queue_by_name(queue, work_pool_name=pool)
    client.update_work_queue(
        found.id, concurrency_limit=options.get("concurrency_limit"), description=options.get("description", "")
    )


def end_left_over() -> int:
    """Call crashed the runs of deployments that an earlier `up` ended with; returns how many.

    Only for a server without a worker: such runs would count as going on for ever, and keep the next one waiting.
    """
    states = ["RUNNING", "PENDING", "PAUSED", "CANCELLING"]
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(
                {"state": {"type": {"any_": states}}, "deployment_id": {"is_null_": False}}
            )
        )
        for run in found:
            client.set_flow_run_state(run.id, Crashed(message="It ended with the worker that it ran on."))
    return len(found)


def deploy(root: Path) -> list[str]:
    """Register pools and deployments; what is registered already is brought up to date. Returns the deployments."""
    need_server()
    names = [entry["name"] for entry in read(root)["deployments"]]
    make_pools(root)
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(root / FILE)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    with get_client(sync_client=True) as client:
        missing = [name for name in names if _find(client, name) is None]
    if done.returncode or missing:
        reason = " ".join((done.stderr + done.stdout).split())[-300:]
        raise DeepMojiError(f"Prefect did not take the deployments of {root / FILE} ({reason}): mend the file.")
    return names


def trigger(root: Path, name: str, parameters: Mapping[str, Any], queue: str | None = None) -> str:
    """Start a run of a deployment, in another queue than its own if one is named; returns where to watch it."""
    names = [entry["name"] for entry in read(root)["deployments"]]
    if name not in names:
        raise UsageError(f"There is no deployment {name!r}: choose one of {', '.join(names)}.")
    url = need_server()
    with get_client(sync_client=True) as client:
        found = _find(client, name)
        if found is None:
            raise UsageError(f"The deployment {name} is not registered at {url}: run `make deploy` first.")
        try:
            run = client.create_flow_run_from_deployment(found, parameters=dict(parameters), work_queue_name=queue)
        except PrefectHTTPStatusError as error:
            reason = " ".join(error.response.text.split())
            raise UsageError(f"Prefect refused to start {name} ({reason:.300}): mend its parameters.") from None
    return watch(run.id)


def _find(client: SyncPrefectClient, name: str) -> UUID | None:
    """A deployment has the name of its flow."""
    try:
        return client.read_deployment_by_name(f"{name}/{name}").id
    except ObjectNotFound:
        return None


def watch(run: UUID) -> str:
    return f"{need_server().removesuffix('/api')}/runs/flow-run/{run}"


def approve(run: str | None = None) -> str:
    """Let a release that waits go on: the one named by its id, or the only one; returns where to watch it."""
    need_server()
    with get_client(sync_client=True) as client:
        waiting = [
            str(found.id)
            for found in client.read_flow_runs(
                flow_filter=FlowFilter.model_validate({"name": {"any_": ["release"]}}),
                flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}}),
            )
        ]
        if run is None and len(waiting) == 1:
            run = waiting[0]
        if run not in waiting:
            those = f"those that wait are {', '.join(waiting)}" if waiting else "none does"
            raise UsageError(
                f"{f'The flow run {run} is no release that waits' if run else 'One release should wait'} for approval, "
                f"but {those}: start one with `python -m flows trigger release`, or name its id."
            )
        client.resume_flow_run(UUID(run))
    return watch(UUID(run))
