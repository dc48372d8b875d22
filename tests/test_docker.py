"""docker/ against its rules. No engine runs here: files are parsed, and the commands checked against the programs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepmoji.cli import cli
from tests import servers

OWN = {"deepmoji-worker": "worker", "deepmoji-worker-gpu": "worker-gpu", "deepmoji-serve": "serve"}
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")


@pytest.fixture(scope="module")
def compose(project_root: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((project_root / "docker" / "compose.yaml").read_text())
    return content


@pytest.fixture(scope="module")
def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    return servers.dockerfile()


@pytest.mark.parametrize("target", OWN.values())
def test_each_target_runs_as_a_user_and_says_if_it_is_well(target: str) -> None:
    steps = list(servers.image(target))
    users = [rest for name, rest in steps if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert any(name == "HEALTHCHECK" for name, _ in steps)
    assert [name for name, _ in steps][-1] == "CMD"
    assert not any(name == "RUN" and "pip" in rest for name, rest in steps), "built elsewhere, so no compiler comes in"


def test_every_install_is_pinned(stages: Any, project_root: Path) -> None:
    installs = [
        part
        for _, steps in stages.values()
        for name, rest in steps
        if name == "RUN"
        for part in rest.split("&&")
        if "pip install" in part
    ]
    assert installs
    assert all("-c constraints.txt" in part for part in installs)
    pins = [
        line for line in (project_root / "docker" / "servers.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert set(pins) <= set((project_root / "constraints.txt").read_text().splitlines()), "pip takes one version each"


def test_what_is_copied_is_there(stages: Any, project_root: Path) -> None:
    for _, steps in stages.values():
        for name, rest in steps:
            assert name != "ADD"
            if name == "COPY" and not rest.startswith("--from"):
                assert all((project_root / source).exists() for source in rest.split()[:-1])


def test_every_service_has_a_health_check(compose: Any) -> None:
    for name, service in compose["services"].items():
        own = OWN.get(service["image"])
        checked = "healthcheck" in service or (
            own is not None and any(step == "HEALTHCHECK" for step, _ in servers.image(own))
        )
        assert checked, name
    assert {"postgres", "s3", "mlflow", "prefect", "worker", "serve"} <= compose["services"].keys()


def test_images_are_pinned_or_built_here(compose: Any) -> None:
    built = {s["image"]: s["build"]["target"] for s in compose["services"].values() if "build" in s}
    assert built == OWN
    for service in compose["services"].values():
        if service["image"] not in OWN:
            assert re.search(r":(?!latest)[\w.-]+$", service["image"])


def test_ports_are_open_on_loopback_alone(compose: Any) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_secret_has_a_value_in_the_files(compose: Any, project_root: Path) -> None:
    asked: set[str] = set()
    for service in compose["services"].values():
        assert "env_file" not in service, "a service gets the secrets that it uses, not all of them"
        for name, value in service.get("environment", {}).items():
            asked |= set(REQUIRED.findall(value))
            rest = REQUIRED.sub("", value)
            assert "$" not in rest, f"{name} has a default or may be empty"
            if re.search("PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY|ROOT_USER", name):
                assert rest == "", f"{name} is spelled out"
            assert not re.search(r"://\w+:[^@/]+@", rest), f"{name} holds a password"
        asked |= set(REQUIRED.findall(str(service.get("user", ""))))
    example = (project_root / "docker" / ".env.example").read_text()
    lines = [line for line in example.splitlines() if line and not line.startswith("#")]
    assert {line.removesuffix("=") for line in lines} == asked, "each is named, none has a value"


def test_data_lies_in_named_volumes(compose: Any, project_root: Path) -> None:
    used = set()
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (project_root / "docker" / source).exists()
            else:
                used.add(source)
    assert used == compose["volumes"].keys()


def test_services_wait_for_what_they_need(compose: Any) -> None:
    services = compose["services"]
    for service in services.values():
        for other in service.get("depends_on", {}):
            assert other in services
        for value in service.get("environment", {}).values():
            for host in re.findall(r"(?:://|@)([a-z0-9]+)[:/]", value):
                assert host in services or host in ("deepmoji",), value


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (("mlflow", "server"), ("--app-name", "--host", "--port", "--artifacts-destination", "--allowed-hosts")),
        (("prefect", "server", "start"), ("--host", "--port")),
        (("prefect", "worker", "start"), ("--type", "--pool", "--work-queue", "--with-healthcheck")),
    ],
)
def test_commands_are_those_of_the_programs(compose: Any, program: tuple[str, ...], options: tuple[str, ...]) -> None:
    commands = [" ".join(service.get("command", [])) for service in compose["services"].values()]
    commands += [rest for stage in OWN.values() for name, rest in servers.image(stage) if name == "CMD"]
    mine = [command for command in commands if " ".join(program) in command]
    assert mine
    assert {option for command in mine for option in re.findall(r"--[a-z-]+", command)} == set(options)
    tool = Path(sys.executable).parent / program[0]
    done = subprocess.run([tool, *program[1:], "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert all(option in done.stdout for option in options)


def test_serve_uses_options_of_the_command() -> None:
    command = next(rest for name, rest in servers.image("serve") if name == "CMD")
    known = {name for parameter in cli.commands["serve"].params for name in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", command)) <= known


def test_the_folders_of_tools_hold_no_python(project_root: Path) -> None:
    assert [p for folder in ("docker", "mlflow") for p in (project_root / folder).rglob("*.py")] == []


def test_both_workers_run_the_same_command() -> None:
    """tests/test_real_servers.py runs that of the target worker."""
    assert servers.image("worker")[-1] == servers.image("worker-gpu")[-1]
