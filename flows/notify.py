"""Who is told of a failed run or a refused promotion: a notification block of Prefect if one is named, and the log.

DEEPMOJI_NOTIFY names the block, as in `slack-webhook/ops`. A notification that fails never fails a run.
"""

import asyncio
import inspect
import os
from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_UI_URL

from deepmoji.errors import RegistryError

VARIABLE = "DEEPMOJI_NOTIFY"


def tell(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for on_failure and on_crashed: says what ended and why, and that a promotion was refused as such."""
    error = state.result(raise_on_failure=False)
    refused = isinstance(error, RegistryError)
    if refused and flow.name != "release":
        return  # the release inside it has told already
    subject = "Promotion refused" if refused else f"{flow.name} {str(state.type.value).lower()}"
    why = error if isinstance(error, Exception) else state.message
    body = f"{subject}: {why} (flow run {flow_run.name}{_place(flow_run)})"
    logger = flow_run_logger(flow_run, flow)
    logger.error(body)
    name = os.environ.get(VARIABLE)
    if not name:
        return
    try:
        _notify(name, body, f"DeepMoji: {subject}")
    except Exception as problem:
        # The kind of problem alone: its text may hold the address of the webhook, which is a secret.
        logger.warning(f"{VARIABLE}={name} could not be notified ({type(problem).__name__}): look at that block.")


def _notify(name: str, body: str, subject: str) -> None:
    import prefect.blocks.notifications  # noqa: F401 - makes Prefect's own kinds known to `load`; slow to import
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    block = Block.load(name)
    if not isinstance(block, NotificationBlock):
        raise TypeError(f"{name} is no notification block")
    told: object = block.notify(body, subject=subject)
    if inspect.iscoroutine(told):  # a block may know the asynchronous way alone
        asyncio.run(told)


def _place(run: FlowRun) -> str:
    url = PREFECT_UI_URL.value()
    return f", {url}/runs/flow-run/{run.id}" if url else ""
