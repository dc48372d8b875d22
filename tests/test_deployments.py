"""prefect.yaml against the flows, the pools and the images that it names; no server is needed here."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import prefect
import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import Flow, load_flow_from_entrypoint

from deepmoji.errors import UsageError
from flows import deployments, servers


@pytest.fixture(scope="module")
def content(project_root: Path) -> dict[str, Any]:
    return deployments.read(project_root)


@pytest.fixture(scope="module")
def variables() -> dict[str, set[str]]:
    """By type of work pool, what a deployment may set, as this version of Prefect ships it."""
    folder = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    packages = json.loads((folder / "aggregate-worker-metadata.json").read_text())
    return {
        kind: set(worker["default_base_job_configuration"]["variables"]["properties"])
        for workers in packages.values()
        for kind, worker in workers.items()
    }


def test_there_is_what_a_team_needs(content: dict[str, Any]) -> None:
    schedules = {entry["name"]: [s["cron"] for s in entry["schedules"]] for entry in content["deployments"]}
    assert set(schedules) == {"pipeline", "refresh", "benchmark", "release"}
    assert schedules["refresh"] == schedules["release"] == []
    [nightly], [weekly] = schedules["pipeline"], schedules["benchmark"]
    for cron in (nightly, weekly):
        CronSchedule(cron=cron)
    assert re.fullmatch(r"\d+ \d+ \* \* \*", nightly)
    assert re.fullmatch(r"\d+ \d+ \* \* \d", weekly)


def test_entrypoints_are_flows_of_that_name_that_take_the_parameters(content: dict[str, Any]) -> None:
    for entry in content["deployments"]:
        flow: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"])
        assert flow.name == entry["name"]
        parameters = inspect.signature(flow.fn).parameters
        assert set(entry.get("parameters", {})) <= set(parameters)
        needed = {name for name, p in parameters.items() if p.default is p.empty} - set(entry.get("parameters", {}))
        assert not (needed and entry["schedules"]), "what runs by itself must need nothing"
    release = next(entry for entry in content["deployments"] if entry["name"] == "release")
    assert release["parameters"] == {"approval": True}


def test_places_are_pools_and_queues_that_are_described(
    content: dict[str, Any], variables: dict[str, set[str]]
) -> None:
    pools = content["work_pools"]
    assert {pool["type"] for pool in pools.values()} == {"process", "docker"}
    for place in [*content["places"].values(), *(entry["work_pool"] for entry in content["deployments"])]:
        pool = pools[place["name"]]
        assert place["work_queue_name"] in pool["queues"]
        assert set(place.get("job_variables", {})) <= variables[pool["type"]]
    assert all(pools[entry["work_pool"]["name"]]["type"] == "process" for entry in content["deployments"])
    assert pools[servers.POOL]["type"] == "process", "which is the pool that the worker of `up` asks"


def test_the_gpu_queue_runs_one_at_a_time(content: dict[str, Any]) -> None:
    place = content["places"]["gpu"]
    assert content["work_pools"][place["name"]]["queues"][place["work_queue_name"]]["concurrency_limit"] == 1


def test_the_workers_of_the_images_ask_for_pools_that_are_described(
    content: dict[str, Any], project_root: Path
) -> None:
    dockerfile = (project_root / "docker" / "Dockerfile").read_text()
    asked = set(re.findall(r"WORK_POOL=(\S+) WORK_QUEUE=(\S+)", dockerfile))
    assert {queue for _, queue in asked} == {"default", "gpu"}
    assert all(queue in content["work_pools"][pool]["queues"] for pool, queue in asked)
    compose = yaml.safe_load((project_root / "docker" / "compose.yaml").read_text())
    images = {service["image"] for service in compose["services"].values()}
    assert content["places"]["container"]["job_variables"]["image"] in images


@pytest.mark.parametrize("how", ["missing", "no yaml", "no pools", "unknown pool"])
def test_a_file_that_does_not_do_is_one_sentence(how: str, content: dict[str, Any], tmp_path: Path) -> None:
    if how == "no yaml":
        (tmp_path / "prefect.yaml").write_text("deployments: [")
    elif how == "no pools":
        (tmp_path / "prefect.yaml").write_text("deployments: []\n")
    elif how == "unknown pool":
        pools = {name: pool for name, pool in content["work_pools"].items() if name != servers.POOL}
        (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content | {"work_pools": pools}))
    with pytest.raises(UsageError, match=r"prefect\.yaml") as caught:
        deployments.read(tmp_path)
    assert "\n" not in str(caught.value)
