"""`python -m flows`: the pipeline and its everyday companions, with their surroundings set before Prefect loads."""

import os
import sys
import time
from pathlib import Path

import click

from deepmoji.config import find_project, load_params, use_preset
from deepmoji.errors import DeepMojiError
from flows.environment import enter


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
@click.pass_obj
def pipeline(root: Path, preset: str | None, data: Path | None, promote: bool) -> None:
    """The whole road, from raw text to a promoted model."""
    started = time.monotonic()
    if preset is not None:
        use_preset(root, preset, data if preset != "sample" else None)
    params = load_params(root / "params.yaml")
    if params.data == "data" and not (root / "data").exists():
        from deepmoji.sample import write_sample

        click.echo("data/ is not there: writing the built-in synthetic sample", err=True)
        write_sample(root / "data")
    from flows.pipeline import pipeline as pipeline_flow
    from flows.summary import last_screen

    results = pipeline_flow(str(root), params.preset, promote)
    click.echo(last_screen(root, results, time.monotonic() - started))


@cli.command()
@click.option("--approve", is_flag=True, help="Pause for a person's approval before the champion changes.")
@click.pass_obj
def release(root: Path, approve: bool) -> None:
    """Register what artifacts/ holds, and promote it if it passes the gates."""
    from flows.release import release as release_flow

    click.echo(release_flow(str(root), approve))


@cli.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.pass_obj
def ui(root: Path, port: int) -> None:
    """The MLflow UI over this project's runs and models, on loopback; Ctrl-C ends it."""
    from deepmoji import tracking

    uri = tracking.prepare(root)
    os.execvp("mlflow", ["mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)])


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


if __name__ == "__main__":
    main()
