"""``diffalign votes`` and ``diffalign gallery serve``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diffalign.votes.pictures import Pictures

votes_app = typer.Typer(help="Votes of people: check, sum up, explain, train on.", no_args_is_help=True)

Votes = Annotated[list[Path], typer.Argument(help="votes that the gallery exported, .jsonl")]
Images = Annotated[list[Path] | None, typer.Option(help="folder of results that was voted on; repeatable")]
AsJson = Annotated[Path | None, typer.Option("--json", help="also write a new JSON file")]
Aspect = Annotated[str, typer.Option(help="aspect of the votes")]


@votes_app.command("check")
def votes_check(votes: Votes, images: Images = None, as_json: AsJson = None) -> None:
    """Look at raters (left share, repeats, anchors, speed) and at whether votes fit their pictures.

    Exit code 1 where they do not. Example: diffalign votes check votes.jsonl --images outputs/results
    """
    from rich.console import Console

    from diffalign.cli import one_clear_line
    from diffalign.votes.check import check
    from diffalign.votes.rows import read_votes
    from diffalign.votes.show import show_check

    with one_clear_line():
        found = check(read_votes(votes), _pictures(images))
        _write(as_json, found.as_json())
        show_check(found, Console())
    if not found.usable:
        raise typer.Exit(1)


@votes_app.command("summary")
def votes_summary(
    votes: Votes,
    base: Annotated[str, typer.Option(help="model to compare with; else the one shown most")] = "",
    resamples: Annotated[int, typer.Option(min=100, help="bootstrap samples")] = 2000,
    as_json: AsJson = None,
) -> None:
    """Win rates with intervals over prompts and raters, agreement, Bradley-Terry for three models or more.

    Example: diffalign votes summary anna.jsonl ben.jsonl --base base
    """
    from rich.console import Console

    from diffalign.cli import one_clear_line
    from diffalign.votes.rows import read_votes
    from diffalign.votes.show import show_summary
    from diffalign.votes.summary import summarise

    with one_clear_line():
        found = summarise(read_votes(votes), base or None, resamples=resamples)
        _write(as_json, found.as_json())
        show_summary(found, Console())


@votes_app.command("explain")
def votes_explain(
    votes: Votes,
    images: Annotated[list[Path], typer.Option(help="folder of results that was voted on; repeatable")],
    features: Annotated[str, typer.Option(help="oracle (shapes world), image, scores")] = "image,scores",
    user: Annotated[str, typer.Option(help="votes of this rater alone")] = "",
    aspect: Aspect = "overall",
    ridge: Annotated[float, typer.Option(help="precision of the prior on weights, above 0")] = 0.1,
    as_json: AsJson = None,
) -> None:
    """Which features of the pictures votes follow: weights with intervals.

    Example: diffalign votes explain votes.jsonl --images outputs/results --features oracle,image
    """
    from rich.console import Console

    from diffalign.cli import one_clear_line
    from diffalign.votes.explain import explain
    from diffalign.votes.pictures import find_pictures
    from diffalign.votes.rows import read_votes
    from diffalign.votes.show import show_explanation

    with one_clear_line():
        kinds = [k.strip() for k in features.split(",") if k.strip()]
        options: dict[str, Any] = {"features": kinds, "user": user or None, "aspect": aspect, "ridge": ridge}
        found = explain(read_votes(votes), find_pictures(images), **options)
        _write(as_json, found.as_json())
        show_explanation(found, Console())


@votes_app.command("to-dataset")
def votes_to_dataset(
    votes: Votes,
    images: Annotated[list[Path], typer.Option(help="folder of results that was voted on; repeatable")],
    output: Annotated[Path, typer.Option("--output", "-o", help="new folder")],
    form: Annotated[str, typer.Option(help="pickapic, folder or webdataset")] = "folder",
    kind: Annotated[str, typer.Option(help="pairs (DPO), or likes and dislikes (KTO)")] = "pairs",
    ties: Annotated[str, typer.Option(help="keep (0.5; of likes both liked), drop, or soft")] = "keep",
    raters: Annotated[str, typer.Option(help="share of votes as soft label, or each rater apart")] = "share",
    aspect: Aspect = "overall",
    any_gallery: Annotated[
        bool, typer.Option("--any-gallery", help="take votes of other galleries of the same pictures")
    ] = False,
) -> None:
    """Turn votes into preferences to train on; prompts that were voted on go to used_prompts.txt.

    Example: diffalign votes to-dataset votes.jsonl --images outputs/results -o data/round1
    """
    from diffalign.cli import one_clear_line
    from diffalign.votes.dataset import DatasetOptions, to_dataset
    from diffalign.votes.pictures import find_pictures
    from diffalign.votes.rows import read_votes
    from diffalign.votes.show import dataset_lines

    with one_clear_line():
        words: dict[str, Any] = {"form": form, "kind": kind, "ties": ties, "raters": raters, "aspect": aspect}
        options, pictures = DatasetOptions(**words), find_pictures(images)
        found = to_dataset(read_votes(votes), pictures, output, options, any_gallery=any_gallery)
        typer.echo("\n".join(dataset_lines(found)))


def gallery_serve(
    runs: Annotated[list[Path], typer.Argument(help="folders of results that share prompts and seeds")],
    votes: Annotated[Path, typer.Option(help="SQLite file of votes; goes on where it is there")],
    export: Annotated[
        Path | None, typer.Option(help="write the votes of that file as new .jsonl, and stop")
    ] = None,
    host: Annotated[str, typer.Option(help="address; others than loopback need a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8712,
    choose: Annotated[
        str, typer.Option(help="random, margin, disagreement, entropy or routed (by the results' scores)")
    ] = "random",
) -> None:
    """Serve a gallery to several raters: votes are on disk at once; the token is read from $GALLERY_TOKEN.

    Example: diffalign gallery serve outputs/results --votes votes.sqlite, and then
    diffalign gallery serve outputs/results --votes votes.sqlite --export votes.jsonl
    """
    from diffalign.cli import one_clear_line
    from diffalign.votes.serve import ServeOptions, serve
    from diffalign.votes.store import export_votes

    with one_clear_line():
        if export is not None:
            typer.echo(f"{export_votes(votes, export)} votes in {export}")
            return
        options = ServeOptions(host=host, port=port, choose=choose)
        serve(
            runs, votes, options, ready=lambda: typer.echo(f"gallery on http://{host}:{port}, ctrl-c stops")
        )


def _pictures(images: list[Path] | None) -> Pictures | None:
    from diffalign.votes.pictures import find_pictures

    return find_pictures(images) if images else None


def _write(path: Path | None, found: dict[str, Any]) -> None:
    """Write a JSON file where one is asked for.

    Raises:
        FileExistsError: it is there already.
    """
    from diffalign.evaluate.report import write_atomic

    if path is not None:
        if path.exists():
            raise FileExistsError(f"{path} exists: choose another --json")
        write_atomic(path, json.dumps(found, indent=2, default=str, allow_nan=False) + "\n")
