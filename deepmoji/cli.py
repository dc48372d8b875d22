"""The `deepmoji` command. Data goes to stdout, progress and logs to stderr.

Exit codes: 0 good, 1 the work failed, 2 wrong use. Heavy modules load inside the commands that need them, so
`--help` answers at once.
"""

import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepmoji import __version__
from deepmoji.errors import DeepMojiError, InputError, ServiceError, UsageError, describe
from deepmoji.starter import STARTER

if TYPE_CHECKING:
    from deepmoji.inference import Model
    from deepmoji.stages import Project

# The flows look for this in a stage's log: only such a failure may pass when tried again.
TEMPORARY = "error (may pass when tried again): "


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="deepmoji")
@click.option(
    "--project",
    type=click.Path(path_type=Path),
    envvar="DEEPMOJI_PROJECT",
    help="Project folder; by default the nearest one at or above the working folder.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.pass_context
def cli(context: click.Context, project: Path | None, verbose: bool) -> None:
    """Emotion from text, learned from emojis.

    Stages (what `dvc repro` runs): ingest, datasets, validate, tokenize, pretrain, finetune, benchmark.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for chatty in ("alembic", "great_expectations", "httpx", "matplotlib", "mlflow", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    context.obj = project


def _root(given: Path | None) -> Path:
    from deepmoji.config import find_project

    return find_project((given or Path.cwd()).resolve())


def _project(given: Path | None) -> "Project":
    from deepmoji.stages import Project

    return Project(_root(given))


def _run_stage(given: Path | None, stage: str, *arguments: str) -> None:
    from deepmoji import stages

    project = _project(given)
    numbers = stages.only_numbers(getattr(stages, stage)(project, *arguments))
    # One line: a flow streams it, and the whole is on disk, in MLflow and in the Prefect artifact.
    click.echo(json.dumps(numbers, sort_keys=True))


# --- data and stages ------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to; by default the project's data/.")
@click.pass_obj
def sample(given: Path | None, out: Path | None) -> None:
    """Write the built-in synthetic sample: tweets over 64 emojis and three small labelled sets."""
    from deepmoji.sample import write_sample

    facts = write_sample(out or _root(given) / "data")
    click.echo(json.dumps(facts, indent=2, sort_keys=True))


@cli.command()
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path), envvar="DEEPMOJI_DATA", help="Folder with the real data.")
@click.pass_context
def preset(context: click.Context, name: str, data: Path | None) -> None:
    """Make NAME (sample, laptop, starter, table, paper) the project's params.yaml."""
    from deepmoji.config import use_preset
    from deepmoji.lock import one_run

    given: Path | None = context.obj
    if name == "sample" and context.get_parameter_source("data") is click.core.ParameterSource.COMMANDLINE:
        raise UsageError(f"The preset sample has its own data, not {data}: leave --data away, or name another preset.")
    root = _root(given)
    with one_run(root, 0):
        params = use_preset(root, name, data if name != "sample" else None)
    click.echo(f"params.yaml is now the preset {params.preset}; data comes from {params.data}")


@cli.group()
def data() -> None:
    """The versions of data/: add."""


@data.command("add")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--commit", is_flag=True, help="Commit data.dvc with the message, instead of printing what to type.")
@click.pass_obj
def add_data(given: Path | None, source: Path, commit: bool) -> None:
    """Copy SOURCE, a file or folder, into the project's tweets as a new version of data/; prints what is kept of it."""
    from deepmoji import intake

    click.echo(intake.add(_project(given), source, commit=commit))
    if not commit:
        click.echo("Commit it with: git commit data.dvc", err=True)


@cli.command()
@click.pass_obj
def ingest(given: Path | None) -> None:
    """Stage: raw text to a labelled corpus; prints the funnel."""
    _run_stage(given, "ingest")


@cli.command()
@click.option("--write", is_flag=True, help="Stage: write the sets named in params.yaml as tables.")
@click.option("--long", is_flag=True, help="List below each set its folder in the data folder, and its source.")
@click.pass_obj
def datasets(given: Path | None, write: bool, long: bool) -> None:
    """List the known labelled sets, or (--write) convert those named in params.yaml."""
    if write and long:
        raise click.UsageError("Give either --write (the stage) or --long (the list).")
    if write:
        _run_stage(given, "datasets")
        return
    from deepmoji.datasets import CATALOG

    rows = [("name", "task", "metric", "licence"), *((n, e.task, e.metric, e.licence) for n, e in CATALOG.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]))
        if long and row[0] in CATALOG:
            click.echo(f"    {CATALOG[row[0]].folder}, from {CATALOG[row[0]].source}")


@cli.command()
@click.pass_obj
def validate(given: Path | None) -> None:
    """Stage: check corpus and labelled sets; a failing rule stops the road and shows its rows."""
    _run_stage(given, "validate")


@cli.command()
@click.pass_obj
def tokenize(given: Path | None) -> None:
    """Stage: corpus to vocabulary and token ids."""
    _run_stage(given, "tokenize")


@cli.command()
@click.pass_obj
def pretrain(given: Path | None) -> None:
    """Stage: learn to predict emojis; resumes where a killed run stopped."""
    _run_stage(given, "pretrain")


@cli.command()
@click.option("--dataset", help="A set named in params.yaml (the DVC stage).")
@click.option(
    "--method",
    default="chain-thaw",
    show_default=True,
    help="new, last, full, chain-thaw, probe, probe-thaw or an own schedule.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Your own table: CSV, TSV, JSON lines or Parquet.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option("--split", default="70/10/20", show_default=True, help="Shares of train/val/test, or a column's name.")
@click.option(
    "--model", default=STARTER, show_default=True, help="What to start from: starter, a folder, models:/ URI."
)
@click.option("--name", help="Registered as deepmoji-NAME; by default the file's name.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write: model in OUT/finetuned/NAME/METHOD, and OUT/report; by default models/NAME.",
)
@click.pass_context
def finetune(
    context: click.Context,
    dataset: str | None,
    method: str,
    data: Path | None,
    text_column: str,
    label_column: str,
    split: str,
    model: str,
    name: str | None,
    out: Path | None,
) -> None:
    """Transfer to a labelled set: one of params.yaml (--dataset) or your own table (--data)."""
    if (dataset is None) == (data is None):
        raise click.UsageError("Give either --dataset (a set of params.yaml) or --data (your own table).")
    given: Path | None = context.obj
    if dataset is not None:
        for option in ("text_column", "label_column", "split", "model", "name", "out"):
            if context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE:
                shown = option.replace("_", "-")
                raise click.UsageError(f"--{shown} goes with --data (your own table): leave it out with --dataset.")
        _run_stage(given, "finetune", dataset, method)
        return
    assert data is not None
    from deepmoji.stages import finetune_own, only_numbers

    numbers = finetune_own(
        _project(given), data, text_column=text_column, label_column=label_column, split=split, method=method,
        model=model, name=name or data.stem, out=out,
    )  # fmt: skip
    click.echo(json.dumps(only_numbers(numbers), indent=2, sort_keys=True))
    click.echo(f"model: {numbers['model']}\nreport: {numbers['report']}", err=True)
    click.echo(f"registered as models:/deepmoji-{name or data.stem}/{numbers['version']}", err=True)


@cli.command()
@click.pass_obj
def benchmark(given: Path | None) -> None:
    """Stage: every method and baseline side by side."""
    _run_stage(given, "benchmark")


@cli.command()
@click.argument("name")
@click.option("--dataset", "sets", multiple=True, help="A set of params.yaml; may come again. By default all.")
@click.option(
    "--method", "methods", multiple=True, help="A method of params.yaml, as --dataset. By default all but new."
)
@click.option("--share", "shares", multiple=True, type=float, help="For size: a share of the texts; may come again.")
@click.pass_obj
def ablation(
    given: Path | None, name: str, sets: tuple[str, ...], methods: tuple[str, ...], shares: tuple[float, ...]
) -> None:
    """What one part of the recipe is worth. NAME: posneg, types8, no-attention or size.

    Pretrains and fine-tunes again with that one thing changed, and compares with the road's results, which must be
    there. What was made before is not made again.
    """
    from deepmoji import stages

    numbers = stages.ablation(_project(given), name, sets, methods, shares)
    click.echo(json.dumps(stages.only_numbers(numbers), indent=2, sort_keys=True))
    click.echo(f"report: {numbers['report']}", err=True)


# --- using a model --------------------------------------------------------------------------------------------------


def _load(given: Path | None, model: str | None) -> "Model":
    """The model that was asked for, and says which; without one the champion, where there is none the starter."""
    from deepmoji import registry

    root = registry.home(given) if model is None or model.startswith("models:") else None
    if model is None:
        model = registry.default_model(root)
        if model == STARTER:
            click.echo("no champion here, so the starter model answers", err=True)
    loaded = registry.load(model, root=root)
    click.echo(f"model: {loaded.name}", err=True)
    return loaded


def _texts(texts: Sequence[str], file: Path | None, column: str | None) -> Iterator[str]:
    """Texts from the arguments, a file, or the lines of standard input; what is not UTF-8 is set aside and told."""
    if file is not None and texts:
        raise UsageError(f"There are texts and --file {file}: give one of the two.")
    if file is None and column is not None:
        raise UsageError(f"--text-column {column} is for a table: name it with --file.")
    if file is not None:
        from deepmoji.readers import read_texts

        rows = rejects = 0
        for batch in read_texts(file, column or "text"):
            for reject in batch.rejects:
                click.echo(f"set aside: {reject.file}, {reject.place}: {reject.reason}", err=True)
            yield from batch.texts.to_pylist()
            rows, rejects = rows + len(batch.texts), rejects + len(batch.rejects)
        if rejects and not rows:
            raise InputError(f"{file} has no row that can be read: mend it, or name its column with --text-column.")
    elif texts:
        yield from texts
    else:
        yield from _lines()


def _lines() -> Iterator[str]:
    """Lines of standard input, read as those of a file are: UTF-8 whatever the locale says."""
    if sys.stdin.isatty():
        click.echo("reading texts from the keyboard, one a line; Ctrl-D ends them", err=True)
    rows = rejects = 0
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            click.echo(f"set aside: standard input, line {number}: is not UTF-8", err=True)
            rejects += 1
        else:
            rows += 1
            yield line
    if rejects and not rows:
        raise InputError("Standard input has no line that can be read: give it texts in UTF-8.")


_model_option = click.option(
    "--model", help="starter, a model folder or a models:/ URI; by default the champion, else the starter model."
)
_file_option = click.option("--file", type=click.Path(path_type=Path), help="Read texts from a file, one a row.")
_column_option = click.option("--text-column", help="Column of that file, if it is a table.  [default: text]")


@cli.command()
@click.argument("texts", nargs=-1)
@_model_option
@_file_option
@_column_option
@click.option("--top", default=5, show_default=True, type=click.IntRange(1))
@click.option("--format", "shape", type=click.Choice(["text", "json", "csv"]), default="text", show_default=True)
@click.pass_obj
def predict(
    given: Path | None,
    texts: tuple[str, ...],
    model: str | None,
    file: Path | None,
    text_column: str,
    top: int,
    shape: str,
) -> None:
    """Labels with probabilities for TEXTS, a file's rows, or the lines of standard input.

    The decision is the label or the labels that count: the most probable one, or those that reach their thresholds
    where the model has some, as one of several labels does. Plain text shows all of the latter, marked with a *.
    """
    loaded = _load(given, model)
    rows = list(_texts(texts, file, text_column))
    probabilities = loaded.probabilities(rows)
    answers, decisions = loaded.rank(probabilities, top), loaded.decide(probabilities)
    if shape == "csv":
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        count = len(answers[0]) if answers else 0
        ranked = (f"{part}_{rank + 1}" for rank in range(count) for part in ("label", "probability"))
        writer.writerow(["text", *ranked, "decision"])
        writer.writerows(
            [text, *(cell for label, p in row for cell in (label, f"{p:.4f}")), "|".join(decision)]
            for text, row, decision in zip(rows, answers, decisions, strict=True)
        )
        return
    for text, answer, decision, row in zip(rows, answers, decisions, probabilities, strict=True):
        if shape == "json":
            labels = [[label, round(p, 6)] for label, p in answer]
            click.echo(json.dumps({"text": text, "labels": labels, "decision": decision}, ensure_ascii=False))
        else:
            marked = decision if loaded.thresholds else []
            above = {label for label, _ in answer}
            below = [(label, p) for label, p in zip(loaded.labels, row, strict=True) if label in {*marked} - above]
            ranking = "  ".join(f"{label}{'*' if label in marked else ''} {p:.3f}" for label, p in [*answer, *below])
            click.echo(f"{ranking}  {text}")


@cli.command()
@click.argument("texts", nargs=-1)
@_model_option
@_file_option
@_column_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="NumPy file to write, (texts, features).")
@click.pass_obj
def encode(
    given: Path | None, texts: tuple[str, ...], model: str | None, file: Path | None, text_column: str, out: Path
) -> None:
    """Emotional features of texts (2,304 numbers each at the published sizes) as a .npy file."""
    import numpy as np

    features = _load(given, model).encode(list(_texts(texts, file, text_column)))
    beside = out.with_name(f"{out.name}.tmp")
    try:
        with beside.open("wb") as stream:
            np.save(stream, features, allow_pickle=False)
        beside.replace(out)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    click.echo(f"{out}: {features.shape[0]} x {features.shape[1]}", err=True)


@cli.command()
@click.argument("texts", nargs=-1, required=True)
@_model_option
@click.pass_obj
def explain(given: Path | None, texts: tuple[str, ...], model: str | None) -> None:
    """The words of TEXTS with the attention that each got."""
    for tokens in _load(given, model).explain(list(texts)):
        click.echo("  ".join(f"{token} {weight:.3f}" for token, weight in tokens))


@cli.command()
@_model_option
@click.option("--corpus", type=click.Path(path_type=Path), help="A labelled corpus; by default the project's.")
@click.pass_obj
def evaluate(given: Path | None, model: str | None, corpus: Path | None) -> None:
    """How well a model predicts the emojis of a corpus' test texts, over all of them and by source."""
    from deepmoji import evaluation

    loaded = _load(given, model)
    click.echo(evaluation.show(evaluation.evaluate(loaded, corpus or _root(given) / "artifacts" / "corpus")))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--storage", type=click.Choice(["fp32", "fp16", "int8"]), default="int8", show_default=True)
@click.option("--words", type=click.IntRange(11), help="Keep only so many words, the most frequent.")
@click.option("--note", type=click.Path(path_type=Path), help="A text file to add to the model card.")
def compress(folder: Path, out: Path, storage: str, words: int | None, note: Path | None) -> None:
    """A smaller copy OUT of the model in FOLDER; `deepmoji evaluate` says what it costs."""
    from deepmoji import starter

    text = note.read_text(encoding="utf-8") if note is not None else ""
    click.echo(json.dumps(starter.compress(folder, out, storage=storage, words=words, note=text), sort_keys=True))


@cli.command("import-weights")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--vocabulary", type=click.Path(path_type=Path), help="The published vocabulary.json.")
@click.option("--labels", help="What the outputs stand for, in order: a label set of the package, or a file.")
def import_weights(path: Path, out: Path, vocabulary: Path | None, labels: str | None) -> None:
    """Turn published weights (Keras .hdf5 or torchMoji .bin) into a model folder OUT."""
    from deepmoji import weights

    weights.import_weights(path, out, vocabulary=vocabulary, labels=labels)
    click.echo(str(out))


@cli.group()
def models() -> None:
    """The registry: list, show, compare, promote, rollback."""


@models.command("list")
@click.pass_obj
def list_models(given: Path | None) -> None:
    """Every registered version with its aliases and numbers."""
    from deepmoji import registry

    click.echo(registry.table(registry.list_models(_root(given))))


@models.command()
@click.argument("version")
@click.pass_obj
def show(given: Path | None, version: str) -> None:
    """One version: tags, numbers, history."""
    from deepmoji import registry

    click.echo(json.dumps(registry.show(_root(given), version), indent=2, sort_keys=True, ensure_ascii=False))


@models.command()
@click.argument("first")
@click.argument("second")
@click.pass_obj
def compare(given: Path | None, first: str, second: str) -> None:
    """Two versions' numbers side by side."""
    from deepmoji import registry

    click.echo(registry.table(registry.compare(_root(given), first, second)))


@models.command()
@click.argument("version")
@click.pass_obj
def promote(given: Path | None, version: str) -> None:
    """Make VERSION the champion if it passes the gates of mlflow/promotion.yaml."""
    from deepmoji import registry
    from deepmoji.evaluation import gate_numbers

    root = _root(given)
    registry.promote(
        root,
        version,
        registry.load_gates(root / "mlflow" / "promotion.yaml"),
        evaluate=lambda folder: gate_numbers(folder, root / "artifacts" / "corpus"),
    )
    click.echo(f"{'' if '/' in version or '@' in version else 'deepmoji version '}{version} is the champion")


@models.command()
@click.pass_obj
def rollback(given: Path | None) -> None:
    """Make the champion before this one the champion again."""
    from deepmoji import registry

    click.echo(f"deepmoji version {registry.rollback(_root(given))} is the champion again")


@cli.command()
@_model_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.pass_obj
def serve(given: Path | None, model: str | None, host: str, port: int) -> None:
    """A page and a REST service for a model; on loopback unless told otherwise."""
    from deepmoji import serving

    serving.run(serving.create_app(_load(given, model)), host, port)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command; a user's mistake is one sentence and an exit code, never a traceback."""
    # Read when torch loads. By default its threads wait for each other in long busy loops: beside other work on the
    # same two cores training fell from 8,000 to 300 tokens/s. Short loops cost nothing on idle cores (823 examples/s
    # against 740), which sleeping at once does (644).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An argument of other bytes than UTF-8 is answered like any text, and shown with those bytes escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return cli.main(args=arguments, standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.Abort:
        code = 130
    except click.ClickException as mistake:
        mistake.show()
        code = mistake.exit_code
    except ServiceError as error:
        click.echo(f"{TEMPORARY}{error}", err=True)
        code = error.exit_code
    except DeepMojiError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of stdout went away (`| head`): nothing is left to tell it.
        sys.stderr.close()
        code = 1
    except OSError as error:
        # A full or read-only disk reaches here from whatever was being written.
        click.echo(f"error: {describe(error)}", err=True)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
