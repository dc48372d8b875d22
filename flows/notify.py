"""Who is told of a failed run or a refused promotion: a notification block of Prefect if one is named, and the log.

DEEPMOJI_NOTIFY names the block, as in `slack-webhook/ops`. A notification that fails never fails a run.
"""

import os
from typing import Any

from prefect.blocks.core import Block
from prefect.blocks.notifications import NotificationBlock
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_UI_URL

from deepmoji.errors import RegistryError

VARIABLE = "DEEPMOJI_NOTIFY"


def tell(flow: Flow[..., Any], run: FlowRun, state: State[Any]) -> None:
    """A hook for on_failure and on_crashed: says what ended and why, and that a promotion was refused as such."""
    error = state.result(raise_on_failure=False)
    refused = isinstance(error, RegistryError)
    if refused and flow.name != "release":
        return  # the release inside it has told already
    subject = "Promotion refused" if refused else f"{flow.name} {str(state.type.value).lower()}"
    body = f"{subject}: {error if isinstance(error, Exception) else state.message} (flow run {run.name}{_place(run)})"
    logger = flow_run_logger(run, flow)
    logger.error(body)
    name = os.environ.get(VARIABLE)
    if not name:
        return
    try:
        block = Block.load(name)
        if not isinstance(block, NotificationBlock):
            raise TypeError(f"{name} is no notification block")
        block.notify(body, subject=f"DeepMoji: {subject}")
    except Exception as problem:
        # The kind of problem alone: its text may hold the address of the webhook, which is a secret.
        logger.warning(f"{VARIABLE}={name} could not be notified ({type(problem).__name__}): look at that block.")


def _place(run: FlowRun) -> str:
    url = PREFECT_UI_URL.value()
    return f", {url}/runs/flow-run/{run.id}" if url else ""
