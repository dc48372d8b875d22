"""A model over HTTP: POST /predict, /encode, /explain; GET /health; GET / shows a page.

Every answer names the model. Wrong requests get {"error": one sentence} with status 413 (too large) or 422.
Texts are neither logged nor kept.
"""

import logging
import socket
import threading
from functools import partial
from importlib.resources import files
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepmoji.errors import DeepMojiError, UsageError
from deepmoji.inference import Model

log = logging.getLogger(__name__)

MAX_BYTES = 1_000_000
MAX_TEXTS = 256
MAX_CHARACTERS = 10_000
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# The page is one file: nothing is loaded from anywhere, and it talks to this service alone.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Body(BaseModel):
    """What every question carries."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: Annotated[list[Annotated[str, Field(max_length=MAX_CHARACTERS)]], Field(min_length=1, max_length=MAX_TEXTS)]


class PredictBody(Body):
    top_k: Annotated[int, Field(ge=1)] = 5


def create_app(model: Model) -> FastAPI:
    """The web application for a model, ready for `run` or any ASGI server."""
    app = FastAPI(title="DeepMoji", docs_url=None, redoc_url=None)  # those pages load scripts from elsewhere
    app.add_middleware(BodyLimit, limit=MAX_BYTES)
    turn = threading.Lock()  # one call uses every core already; in turn, memory stays bounded

    @app.post("/predict")
    def predict(body: PredictBody) -> dict[str, Any]:
        with turn:
            probabilities = model.probabilities(body.texts)
        predictions = [[p._asdict() for p in best] for best in model.rank(probabilities, body.top_k)]
        return {"model": model.name, "predictions": predictions, "decisions": model.decide(probabilities)}

    @app.post("/encode")
    def encode(body: Body) -> dict[str, Any]:
        with turn:
            features = model.encode(body.texts)
        return {"model": model.name, "features": features.tolist()}

    @app.post("/explain")
    def explain(body: Body) -> dict[str, Any]:
        with turn:
            answers = model.explain(body.texts)
        explanations = [{"tokens": [a._asdict() for a in words], "truncated": words.truncated} for words in answers]
        return {"model": model.name, "explanations": explanations}

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "model": model.name, "labels": len(model.labels), "task": model.task}

    @app.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        return HTMLResponse(files("deepmoji").joinpath("data/page.html").read_text("utf-8"), headers=PAGE_HEADERS)

    @app.exception_handler(RequestValidationError)
    def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error(422, "; ".join(map(_describe, error.errors())) + ".")

    @app.exception_handler(DeepMojiError)
    def mistake(_: Request, error: DeepMojiError) -> JSONResponse:
        return _error(422, str(error))

    return app


def run(app: FastAPI, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until Ctrl-C or SIGTERM. Port 0 takes a free one. UsageError: the address cannot be used."""
    with _listen(host, port) as listener:
        if host not in LOOPBACK:
            log.warning("%s is reachable from other machines, and the service asks nobody for a password", host)
        log.info("serving at http://%s:%d/ (Ctrl-C ends it)", host, listener.getsockname()[1])
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        if listener is not None:
            listener.close()
        raise UsageError(f"{host} port {port} cannot be served ({error.strerror}): choose another port.") from None
    return listener


class BodyLimit:
    """Refuses a request body of more than `limit` bytes with 413, whether or not it says its length."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limit:
                answer = _error(413, f"The request has more than {self.limit:,} bytes: send fewer or shorter texts.")
                await answer(scope, receive, send)
                return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        await self.app(scope, partial(_replay, waiting, receive), send)


async def _replay(waiting: list[Message], receive: Receive) -> Message:
    return waiting.pop() if waiting else await receive()


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse(
        {"error": sentence}, status_code=status, headers={"Connection": "close"} if status == 413 else {}
    )


def _describe(issue: Any) -> str:
    place = ".".join(str(part) for part in issue["loc"])
    return f"{place}: {issue['msg'][:1].lower()}{issue['msg'][1:]}"
