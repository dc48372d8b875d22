"""The REST service and its page, through the real application and once through a real socket."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from deepmoji import serving
from deepmoji.errors import UsageError
from deepmoji.inference import Model, load_folder
from tests.tiny import TEXTS, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_folder(tiny_model(tmp_path_factory.mktemp("models") / "tiny"), name="models:/deepmoji/7")


@pytest.fixture(scope="module")
def app(model: Model) -> FastAPI:
    return serving.create_app(model)


@contextmanager
def connected(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of the application behind a real socket on loopback."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)


def wait_until(ready: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < limit, "the server did not start"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[httpx.Client]:
    with connected(app) as opened:
        yield opened


def test_predict_answers_as_the_model_does(client: httpx.Client, model: Model) -> None:
    answer = client.post("/predict", json={"texts": TEXTS, "top_k": 2})
    assert answer.status_code == 200
    assert answer.json()["model"] == "models:/deepmoji/7"
    told = [(p["label"], pytest.approx(p["probability"], abs=1e-6)) for b in answer.json()["predictions"] for p in b]
    assert [tuple(p) for best in model.predict(TEXTS, top_k=2) for p in best] == told
    assert answer.json()["decisions"] == [[best[0].label] for best in model.predict(TEXTS)]


def test_encode_and_explain_answer_as_the_model_does(client: httpx.Client, model: Model) -> None:
    features = client.post("/encode", json={"texts": TEXTS}).json()
    assert features["model"] == "models:/deepmoji/7"
    np.testing.assert_allclose(features["features"], model.encode(TEXTS), atol=1e-6)
    text = "love " * 9
    explained = client.post("/explain", json={"texts": [text]}).json()
    assert explained["model"] == "models:/deepmoji/7"
    assert explained["explanations"][0]["truncated"] == 1
    assert [t["token"] for t in explained["explanations"][0]["tokens"]] == ["love"] * 9


def test_health_names_the_model(client: httpx.Client) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "model": "models:/deepmoji/7", "labels": 6, "task": "multiclass"}


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        ("/predict", {"texts": []}, "body.texts: list should have at least 1 item"),
        ("/predict", {"texts": ["a"] * 257}, "at most 256 items"),
        ("/predict", {"texts": ["a" * 10_001]}, "at most 10000 characters"),
        ("/predict", {"texts": [None]}, "should be a valid string"),
        ("/predict", {"texts": "love"}, "should be a valid list"),
        ("/predict", {"texts": ["love"], "top_k": 0}, "greater than or equal to 1"),
        ("/predict", {"texts": ["love"], "topk": 1}, "body.topk: extra inputs are not permitted"),
        ("/encode", {"texts": ["love"], "top_k": 1}, "body.top_k: extra inputs are not permitted"),
        ("/explain", {}, "body.texts: field required"),
    ],
)
def test_wrong_requests_get_a_sentence(client: httpx.Client, path: str, body: object, complaint: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert complaint in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_what_is_not_json_gets_a_sentence(client: httpx.Client) -> None:
    answer = client.post("/predict", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "error" in answer.json()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(client: httpx.Client, chunked: bool) -> None:
    body = json.dumps({"texts": ["a" * 9_000] * 120}).encode()
    assert len(body) > serving.MAX_BYTES
    parts = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    answer = client.post("/predict", content=parts if chunked else body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"] == "The request has more than 1,000,000 bytes: send fewer or shorter texts."


def test_a_model_that_cannot_explain_says_so(tmp_path: Path) -> None:
    app = serving.create_app(load_folder(tiny_model(tmp_path / "m", attention=False)))
    with connected(app) as client:
        answer = client.post("/explain", json={"texts": ["love"]})
    assert answer.status_code == 422
    assert "without attention" in answer.json()["error"]


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset"):
                self.found.append(str(value))
            if name == "id":
                self.ids.add(str(value))


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    links = Links()
    links.feed(answer.text)
    assert links.found == ["data:,"]
    assert not re.search(r"https?://|@import|url\(", answer.text)
    used = set(re.findall(r'\bat\("(\w+)"\)', answer.text))
    assert used and used <= links.ids
    assert "innerHTML" not in answer.text, "texts and labels reach the page as text alone"
    assert {"predict", "explain"} <= set(re.findall(r'post\("(\w+)"', answer.text))


def test_pages_that_load_scripts_from_elsewhere_are_off(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    assert set(client.get("/openapi.json").json()["paths"]) == {"/predict", "/encode", "/explain", "/health", "/"}


def test_many_at_once_get_their_own_answers(client: httpx.Client, model: Model) -> None:
    wrong: list[str] = []

    def ask(text: str) -> None:
        best = client.post("/predict", json={"texts": [text], "top_k": 1}).json()["predictions"][0][0]
        if best["label"] != model.predict([text], top_k=1)[0][0].label:
            wrong.append(text)

    threads = [threading.Thread(target=ask, args=[text]) for text in TEXTS * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_run_serves_on_loopback_until_told_to_stop(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[uvicorn.Server] = []
    make = uvicorn.Server

    def kept(config: uvicorn.Config) -> uvicorn.Server:
        servers.append(make(config))
        return servers[0]

    monkeypatch.setattr(uvicorn, "Server", kept)
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(serving.log, "info", lambda *parts: told.append(parts))
    thread = threading.Thread(target=serving.run, args=[app, "127.0.0.1", 0])
    thread.start()
    try:
        wait_until(lambda: bool(told and servers and servers[0].started))
        url = f"http://{told[0][1]}:{told[0][2]}/health"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert json.load(answer)["status"] == "ok"
        with pytest.raises(UsageError, match="choose another port"):
            serving.run(app, "127.0.0.1", int(str(told[0][2])))
    finally:
        servers[0].should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def test_an_address_of_another_machine_is_a_sentence(app: FastAPI) -> None:
    with pytest.raises(UsageError, match="cannot be served"):
        serving.run(app, "192.0.2.1", 8000)


def test_only_serving_loads_the_web_framework() -> None:
    code = "import deepmoji.inference, deepmoji.registry, sys; sys.exit('fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
