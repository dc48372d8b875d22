"""New data is compared and taken in, or refused and nothing changed; and whoever is named is told of failures."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from pydantic import SecretStr

from deepmoji import registry
from deepmoji.errors import DeepMojiError, InputError, RegistryError, UsageError
from deepmoji.stages import Project
from flows.notify import VARIABLE, tell
from flows.pipeline import STAGES
from flows.refresh import check, refresh
from tests import mini

Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, warm_stages: None) -> Path:
    return mini.write_mini_project(tmp_path_factory.mktemp("mini"))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    for name in ("PATH", "DEEPMOJI_PROJECT"):
        monkeypatch.setenv(name, mini.surroundings(project)[name])
    monkeypatch.delenv(VARIABLE, raising=False)
    (project / "ran.txt").unlink(missing_ok=True)


def write(path: Path, numbers: range, labels: int = 8) -> Path:
    path.write_text("".join(f"{mini.tweet(number, labels)}\n" for number in numbers), encoding="utf-8")
    return path


def files(project: Path) -> set[str]:
    return {path.name for path in (project / "data" / "tweets").rglob("*") if path.is_file()}


def drift_artifact() -> str:
    with get_client(sync_client=True) as client:
        found = [a for a in client.read_artifacts() if a.key == "drift"]
    return str(max(found, key=lambda a: a.created).data)  # type: ignore[arg-type, return-value]


@pytest.mark.usefixtures("server")
def test_data_of_the_same_kind_is_taken_in_and_nothing_is_trained(project: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "same.txt", range(1000, 1500))
    assert mini.run(project, "dvc", "add", "-q", "data").returncode == 0
    before = (project / "data.dvc").read_text()
    assert refresh(str(new)) == []
    assert (project / "data.dvc").read_text() != before, "DVC has the new version"
    assert (project / "data" / "tweets" / "same.txt").read_bytes() == new.read_bytes()
    assert not (project / "ran.txt").exists()
    assert "differs little" in drift_artifact()
    assert not (project / ".state" / "refresh").exists()


def test_sources_to_leave_out_are_those_of_the_project(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.refresh.create_markdown_artifact", lambda **_: None)
    params = (project / "params.yaml").read_text()
    try:
        (project / "params.yaml").write_text(params.replace("leave_out: []", "leave_out: [first]"))
        assert check.fn(Project(project), write(tmp_path / "new.txt", range(1000, 1500))) == []
    finally:
        (project / "params.yaml").write_text(params)


@pytest.mark.usefixtures("server")
def test_data_of_another_kind_trains_a_model_that_is_released(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    write(folder / "a.txt", range(2000, 2300), labels=2)
    write(folder / "b.txt", range(2300, 2600), labels=2)
    results = refresh(str(folder))
    assert [result.stage for result in results] == list(STAGES)
    assert mini.ran(project) == list(STAGES)
    assert {"a.txt", "b.txt"} <= files(project)
    assert "label mix" in drift_artifact()
    report = json.loads((project / "artifacts" / "drift" / "validation.json").read_text())
    assert {rule["rule"] for rule in report["rules"] if not rule["passed"]} == {"label mix"}
    assert "deepmoji  1        champion" in mini.run(project, "deepmoji", "models", "list").stdout


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("absent.txt", None, InputError, "is not there"),
        ("picture.png", b"x", InputError, "no known kind"),
        ("few.txt", b"i love this and that so much \xf0\x9f\x98\x82\n", InputError, "Only 1 of the new texts"),
        ("plain.txt", b"the cat and the dog are here\n" * 300, InputError, "left no row"),
        ("first.txt", b"other words\n", UsageError, "other data of that name"),
    ],
)
def test_what_cannot_be_used_changes_nothing(
    name: str, content: bytes | None, error: type[DeepMojiError], says: str, project: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = files(project)
    with pytest.raises(error, match=says) as caught:
        refresh(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert files(project) == before
    assert not (project / "ran.txt").exists()


@pytest.mark.usefixtures("server")
def test_the_same_data_is_not_taken_twice(project: Path) -> None:
    with pytest.raises(UsageError, match="the same data already"):
        refresh("data/tweets/first.txt")


@pytest.fixture
def webhook() -> Iterator[tuple[str, Messages]]:
    """A server on loopback that keeps what it is told."""
    messages: Messages = []

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Keep) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}/secret-path", messages
        listener.shutdown()
        thread.join(10)


def name_block(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    message = {"title": "{{subject}}", "text": "{{body}}"}
    block = CustomWebhookNotificationBlock(name="ops", url=url, json_data=message, headers=None, cookies=None)
    block.save("ops", overwrite=True)
    monkeypatch.setenv(VARIABLE, "custom-webhook/ops")


@flow(name="fails", on_failure=[tell])
def fails() -> None:
    raise InputError("The file is empty: give another one.")


@pytest.mark.usefixtures("server")
def test_a_failure_is_told_to_the_block(webhook: tuple[str, Messages], monkeypatch: pytest.MonkeyPatch) -> None:
    name_block(monkeypatch, webhook[0])
    with pytest.raises(InputError):
        fails()
    [message] = webhook[1]
    assert message["title"] == "DeepMoji: fails failed"
    assert "The file is empty: give another one." in message["text"]


@pytest.mark.usefixtures("server")
def test_a_refused_promotion_is_told_once(
    webhook: tuple[str, Messages], monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    from flows.pipeline import pipeline

    name_block(monkeypatch, webhook[0])
    mini.write_model(project, seed=7)
    gates = project / "mlflow" / "promotion.yaml"
    before = gates.read_text()
    gates.write_text(before.replace("top5: 0.0", "top5: 0.99"))
    try:
        with pytest.raises(RegistryError, match="top5"):
            pipeline(str(project))
    finally:
        gates.write_text(before)
    [message] = webhook[1]
    assert message["title"] == "DeepMoji: Promotion refused"
    assert "top5" in message["text"]


@pytest.mark.usefixtures("server")
def test_a_version_that_was_promoted_while_a_person_thought_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    from flows import release

    mini.write_model(project, seed=8)
    monkeypatch.setattr(release, "pause_flow_run", lambda **_: release.release(str(project)))
    before = registry.champion(project)
    version = release.release(str(project), approval=True)
    assert version == registry.champion(project) != before


@pytest.mark.usefixtures("server")
def test_a_champion_that_was_rolled_back_does_not_come_back_by_itself(
    monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    from flows import release

    bad = release.release(str(project))
    good = registry.rollback(project)
    numbers = release.release_numbers(project)
    for found in (numbers, numbers | {"top5": 0.9}):  # other numbers alone make it no other model
        monkeypatch.setattr(release, "release_numbers", lambda _, found=found: found)
        with pytest.raises(RegistryError, match=f"was rolled back.*deepmoji models promote {bad}"):
            release.release(str(project))
    assert registry.champion(project) == good


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("how", ["nobody listens", "no such block", "no notification"])
def test_a_notification_that_fails_is_a_line_in_the_log(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "nobody listens":
        name_block(monkeypatch, "http://127.0.0.1:9/secret-path")
    elif how == "no notification":
        Secret(value=SecretStr("x")).save("ops", overwrite=True)
        monkeypatch.setenv(VARIABLE, "secret/ops")
    else:
        monkeypatch.setenv(VARIABLE, "custom-webhook/absent")
    with pytest.raises(InputError, match="The file is empty"):
        fails()
    assert "could not be notified" in caplog.text
    assert "secret-path" not in caplog.text


@pytest.mark.usefixtures("server")
def test_without_a_block_the_log_says_it(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError):
        fails()
    assert "fails failed: The file is empty" in caplog.text
    assert "could not be notified" not in caplog.text
