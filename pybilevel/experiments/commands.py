"""The commands and their options. Heavy libraries are imported where a command runs, so `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import pybilevel as pb
from pybilevel.experiments.settings import FewShotSettings

app = typer.Typer(
    help="Fast bilevel programming: differentiate through the training of an inner model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RUNS = Path("runs")
DEFAULT = FewShotSettings()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pybilevel {pb.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Version.")
    ] = False,
) -> None: ...


@app.command()
def info() -> None:
    """Show versions, how the native part was built, and which backends can run here."""
    from pybilevel.experiments.information import information

    facts = information()
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}{value}")


@app.command()
def fewshot(
    context: typer.Context,
    data: Annotated[
        str | None, typer.Option(help="Omniglot's folder, or 'omniglot' to download; else embedded.")
    ] = None,
    ways: Annotated[int, typer.Option(help="Classes an episode.")] = DEFAULT.ways,
    shots: Annotated[int, typer.Option(help="Support examples a class.")] = DEFAULT.shots,
    queries: Annotated[int, typer.Option(help="Query examples a class.")] = DEFAULT.queries,
    steps: Annotated[int, typer.Option(help="Inner steps T.")] = DEFAULT.steps,
    inner_lr: Annotated[
        float, typer.Option(help="Inner step size to start from; it is learned.")
    ] = DEFAULT.inner_lr,
    minutes: Annotated[
        float | None, typer.Option(help="Time for training [1.25 embedded, 18 on data].")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Training episodes, instead of or beside --minutes.")
    ] = None,
    meta_batch: Annotated[int, typer.Option(help="Episodes an outer step.")] = DEFAULT.meta_batch,
    filters: Annotated[
        int, typer.Option(help="Filters a convolution; features are four times as many.")
    ] = DEFAULT.filters,
    features: Annotated[int | None, typer.Option(help="The same, said by features: a multiple of 4.")] = None,
    batch_norm: Annotated[
        str, typer.Option(help="Statistics: episode, batch, or running.")
    ] = DEFAULT.batch_norm,
    precision: Annotated[str, typer.Option(help="Of the encoder: float32 or bfloat16.")] = DEFAULT.precision,
    train_ways: Annotated[int | None, typer.Option(help="Classes a training episode [as --ways].")] = None,
    train_queries: Annotated[int, typer.Option(help="Queries a class in training.")] = DEFAULT.train_queries,
    lr: Annotated[float, typer.Option(help="Outer (Adam) learning rate.")] = DEFAULT.lr,
    clip: Annotated[float, typer.Option(help="Largest norm of the outer gradient.")] = DEFAULT.clip,
    validate_every: Annotated[
        int, typer.Option(help="Iterations from one validation to the next.")
    ] = DEFAULT.validate_every,
    validation_episodes: Annotated[
        int, typer.Option(help="Episodes to validate on.")
    ] = DEFAULT.validation_episodes,
    patience: Annotated[
        int, typer.Option(help="Validations without a better one; 0: never stop.")
    ] = DEFAULT.patience,
    test_episodes: Annotated[int, typer.Option(help="Episodes to test on.")] = DEFAULT.test_episodes,
    seed: Annotated[int, typer.Option(help="Of weights and episodes.")] = DEFAULT.seed,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = DEFAULT.device,
    threads: Annotated[int | None, typer.Option(help="CPU threads [all cores].")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run [a new one in runs/].")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out [the latest in runs/].")
    ] = False,
) -> None:
    """Learn to learn: train an encoder through the training of few-shot classifiers (hyper-representation)."""
    from pybilevel.experiments.checkpoint import FILE, load_checkpoint
    from pybilevel.experiments.fewshot import run_fewshot

    given = _given(context)
    if "features" in given:
        given["filters"] = _filters(given.pop("features"))
    folder = _folder("fewshot", out, resume)
    if resume:
        settings = FewShotSettings.from_json(load_checkpoint(folder).state["settings"]).resumed(given)
    else:
        settings = FewShotSettings(**given)
        if (folder / FILE).exists():
            raise ValueError(
                f"{folder} holds a run already: add --resume to go on with it, or choose another --out."
            )
    run_fewshot(settings, folder, resume=resume)


@app.command()
def hyperclean(
    data: Annotated[
        str | None, typer.Option(help="Folder with MNIST's IDX files; else scikit-learn's digits.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Inner steps T.")] = 300,
    iterations: Annotated[int, typer.Option(help="Outer iterations.")] = 100,
    noise: Annotated[float, typer.Option(help="Share of training labels replaced at random.")] = 0.5,
    lr: Annotated[float, typer.Option(help="Outer (Adam) learning rate.")] = 0.1,
    inner_lr: Annotated[float | None, typer.Option(help="Inner step size [from the curvature].")] = None,
    momentum: Annotated[float, typer.Option(help="Inner momentum.")] = 0.9,
    memory: Annotated[str, typer.Option(help="Bytes for the unroll: auto, or as 200MiB.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the split and the noise.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads [all cores].")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run [a new one in runs/].")] = None,
) -> None:
    """Find the wrong labels of a training set: one weight an example, learned through training (hyper-cleaning)."""
    from pybilevel.experiments.hyperclean import HyperCleanSettings, run_hyperclean

    settings = HyperCleanSettings(
        data=data, steps=steps, iterations=iterations, noise=noise, lr=lr, inner_lr=inner_lr, momentum=momentum,
        memory=memory, seed=seed, threads=threads,
    )  # fmt: skip
    run_hyperclean(settings, _folder("hyperclean", out, resume=False))


def _given(context: typer.Context) -> dict[str, Any]:
    """The options that stand on the command line, without those about the folder."""
    return {
        name: value
        for name, value in context.params.items()
        if name not in ("out", "resume")
        and getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"
    }


def _filters(features: int) -> int:
    if features < 4 or features % 4:
        raise ValueError(
            f"--features {features} must be a positive multiple of 4 (2 x 2 positions of each filter)."
        )
    return features // 4


def _folder(kind: str, out: Path | None, resume: bool) -> Path:
    """The folder of a run: the one given, the latest of its kind to resume, or a new one."""
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out} is a file; give a folder.")
        return out
    runs = sorted(RUNS.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime) if RUNS.is_dir() else []
    if resume:
        if not runs:
            raise ValueError(f"there is no run to resume in {RUNS}/; say which with --out DIR.")
        return runs[-1]
    number = max(
        (int(path.name.rsplit("-", 1)[1]) for path in runs if path.name.rsplit("-", 1)[1].isdigit()),
        default=0,
    )
    return RUNS / f"{kind}-{number + 1:03d}"
