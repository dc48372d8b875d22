"""`python -m flows`: the pipeline and its everyday companions, with their surroundings set before Prefect loads."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from deepmoji.config import find_project, load_params, use_preset
from deepmoji.errors import DeepMojiError, ServiceError, UsageError, describe
from deepmoji.lock import one_run
from flows import temporary
from flows.environment import enter
from flows.warm import warm

ANSWER_SECONDS = 20


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--project", type=click.Path(path_type=Path), envvar="DEEPMOJI_PROJECT", help="Project folder.")
@click.pass_context
def cli(context: click.Context, project: Path | None) -> None:
    """Run the flows on this machine."""
    context.obj = find_project((project or Path.cwd()).resolve())
    enter(context.obj)


@cli.command()
@click.option("--preset", help="Switch params.yaml to this preset first.")
@click.option("--data", type=click.Path(path_type=Path), envvar="DEEPMOJI_DATA", help="Data folder of that preset.")
@click.option("--promote/--no-promote", default=True, show_default=True, help="End with the release gate.")
@click.pass_context
def pipeline(context: click.Context, preset: str | None, data: Path | None, promote: bool) -> None:
    """The whole road, from raw text to a promoted model."""
    root: Path = context.obj
    started = time.monotonic()
    if preset in (None, "sample") and context.get_parameter_source("data") is click.core.ParameterSource.COMMANDLINE:
        raise UsageError(
            f"--data {data} is for a preset of real data: name one too (laptop), or set data in params.yaml."
        )
    with one_run(root):  # which reads what is changed here
        if preset is not None:
            use_preset(root, preset, data if preset != "sample" else None)
        params = load_params(root / "params.yaml")
        if params.data == "data" and not (root / "data").exists():
            write_data(root)
    with asking_prefect(serve=True) as starting, warm(ahead=starting):  # there is time to load modules meanwhile
        from flows.pipeline import pipeline as pipeline_flow
        from flows.summary import last_screen

        results = pipeline_flow(str(root), promote)
    click.echo(last_screen(root, results, time.monotonic() - started))


def write_data(root: Path) -> None:
    """The sample, unless data.dvc says that data/ is something else. UsageError then."""
    from deepmoji.sample import MD5, write_sample

    pointer = root / "data.dvc"
    if pointer.is_file() and MD5 not in pointer.read_text(encoding="utf-8"):
        raise UsageError("data/ is not there, and data.dvc names data of your own: fetch it with `dvc pull`.")
    click.echo("data/ is not there: writing the built-in synthetic sample", err=True)
    write_sample(root / "data")


@cli.command()
@click.pass_obj
def benchmark(root: Path) -> None:
    """Fine-tunes and baselines side by side, from the pretrained model that is there; nothing is released."""
    started = time.monotonic()
    with asking_prefect(serve=True) as starting, warm(ahead=starting):
        from flows.pipeline import benchmark as benchmark_flow
        from flows.summary import benchmark_screen

        results = benchmark_flow(str(root))
    click.echo(benchmark_screen(root, results, time.monotonic() - started))


@cli.command()
@click.option("--approve", is_flag=True, help="Pause for a person's approval before the champion changes.")
@click.pass_obj
def release(root: Path, approve: bool) -> None:
    """Register what artifacts/ holds, and promote it if it passes the gates."""
    if approve:
        from flows.deployments import need_server

        need_server()  # the temporary one of this process would hear of no approval
    with asking_prefect(serve=True):
        from flows.release import release as release_flow

        version = release_flow(str(root), approve)
    click.echo(version)


@cli.command()
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--promote/--no-promote", default=True, show_default=True, help="End a retraining with the release gate.")
@click.pass_obj
def refresh(root: Path, new: Path, promote: bool) -> None:
    """Compare the tweets of NEW (a file or folder) with the corpus, take them in, retrain if they differ too much."""
    with asking_prefect(serve=True):
        from flows.refresh import refresh as refresh_flow

        results = refresh_flow(str(new.resolve()), str(root), promote)
    report = root / "artifacts" / "drift" / "validation.html"
    click.echo(
        f"Taken in, {'and trained anew' if results else 'and little has changed'}; the comparison is in {report}"
    )


@cli.command()
@click.argument("stage", type=click.Choice(["ingest", "tokenize"]))
@click.option(
    "--runner",
    default="processes",
    show_default=True,
    envvar="DEEPMOJI_RUNNER",
    help="Where shards run: processes, dask, or the address of a Dask scheduler (tcp://host:8786).",
)
@click.pass_obj
def shards(root: Path, stage: str, runner: str) -> None:
    """One stage with its shards as Prefect tasks, here or on a cluster that sees the project's folder."""
    # Workers of a cluster would not reach a server that listens on loopback: `run_stage` asks for another.
    with asking_prefect(serve=runner in ("processes", "dask")):
        from flows.shards import run_stage

        numbers = run_stage(root, stage, runner)
    click.echo(f"{stage} is done, its numbers are in artifacts/metrics/{stage}.json ({len(numbers)} entries)")


@cli.command()
@click.option("--prefect-port", default=4200, show_default=True, type=click.IntRange(1, 65535))
@click.option("--mlflow-port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.pass_obj
def up(root: Path, prefect_port: int, mlflow_port: int) -> None:
    """Prefect server, MLflow server and a worker on loopback, until Ctrl-C; other commands then use them."""
    from flows.servers import up as up_here

    up_here(root, prefect_port, mlflow_port)


@cli.command()
@click.pass_obj
def deploy(root: Path) -> None:
    """Register the deployments of prefect.yaml with the running server, or bring them up to date there."""
    from flows.deployments import deploy as deploy_there

    with asking_prefect():
        names = deploy_there(root)
    click.echo(f"Registered: {', '.join(names)}")


@cli.command()
@click.argument("name", default="pipeline")
@click.option("-p", "--parameter", "given", multiple=True, metavar="NAME=VALUE", help="A parameter of the flow (YAML).")
@click.option("--queue", help="Another queue of the work pool, such as gpu.")
@click.pass_obj
def trigger(root: Path, name: str, given: tuple[str, ...], queue: str | None) -> None:
    """Start one run of the deployment NAME, by default pipeline."""
    import yaml

    if wrong := [text for text in given if "=" not in text]:
        raise UsageError(f"The parameter {wrong[0]!r} has no value: write it as NAME=VALUE.")
    from flows.deployments import trigger as trigger_there

    try:
        parameters = {n: yaml.safe_load(v) for n, _, v in (text.partition("=") for text in given)}
    except yaml.YAMLError as error:
        raise UsageError(f"A parameter is no YAML ({' '.join(str(error).split())}): quote its value.") from None
    with asking_prefect():
        place = trigger_there(root, name, parameters, queue)
    click.echo(f"Watch it at {place}")


@cli.command()
@click.argument("run", required=False)
def approve(run: str | None) -> None:
    """Let the release that waits for approval go on; RUN is its flow run's id if several wait."""
    from flows.deployments import approve as approve_there

    with asking_prefect():
        place = approve_there(run)
    click.echo(f"Approved, watch it at {place}")


@cli.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.pass_obj
def ui(root: Path, port: int) -> None:
    """The MLflow UI over this project's runs and models, on loopback; Ctrl-C ends it."""
    from deepmoji import tracking

    uri = tracking.prepare(root)
    if uri.startswith("http"):
        raise UsageError(f"An MLflow server runs at {tracking.hide_secrets(uri)}, with a UI of its own: open that.")
    os.execvp("mlflow", ["mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)])


def spare_traceback(record: logging.LogRecord) -> bool:
    """Log filter: a failure that was foreseen is its sentence; Prefect adds where in the code it was raised."""
    if record.exc_info and isinstance(record.exc_info[1], DeepMojiError):
        record.exc_info = None
    return True


@contextmanager
def asking_prefect(serve: bool = False) -> Iterator[bool]:
    """Turn a Prefect server that does not answer, before or during a flow, into one ServiceError sentence.

    serve: start a temporary server where none is named. Flows are imported within the block, while it gets ready.
    Yields whether one does.
    """
    with ExitStack() as stack:
        own, end = temporary.start() if serve and not os.environ.get("PREFECT_API_URL") else ("", None)
        import httpx
        from prefect.settings import (
            PREFECT_API_REQUEST_TIMEOUT,
            PREFECT_API_URL,
            PREFECT_UI_URL,
            temporary_settings,
        )

        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).addFilter(spare_traceback)
        if end and PREFECT_API_URL.value():
            end()  # a profile of Prefect's names one
            own = ""
        elif own:  # the first request waits until it is ready
            settings = {PREFECT_API_URL: own, PREFECT_UI_URL: "", PREFECT_API_REQUEST_TIMEOUT: temporary.START_SECONDS}
            stack.enter_context(temporary_settings(settings))
        url = PREFECT_API_URL.value()
        try:
            if url and not own:
                httpx.get(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS)
            yield bool(own)
        except (httpx.TransportError, httpx.HTTPStatusError, httpx.InvalidURL) as error:
            reason = " ".join(str(error).split())[:300]
            raise ServiceError(
                f"The Prefect server at {url or 'its temporary address'} does not answer ({reason}): see that it runs, "
                "or unset PREFECT_API_URL to use a temporary one."
            ) from error


def main() -> None:
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as mistake:
        mistake.show()
        sys.exit(mistake.exit_code)
    except DeepMojiError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: {describe(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
