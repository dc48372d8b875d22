"""Every test runs in its own surroundings: no user settings, no network, no telemetry, servers of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("DEEPMOJI_DATA", ROOT.parent / "shared" / "data"))

# Set before any tool is imported: each of them phones home unless told not to.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on real data run wherever the data is; elsewhere they are deselected, which pytest counts and prints."""
    if REAL_DATA.is_dir():
        return
    left_out = [item for item in items if item.get_closest_marker("realdata")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the user's MLflow server, Prefect profile or project."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING", "MLFLOW_REGISTRY", "PREFECT_API", "DEEPMOJI_PROJECT")):
            monkeypatch.delenv(name)
    yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    return REAL_DATA


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT
