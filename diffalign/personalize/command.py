"""``diffalign users``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

users_app = typer.Typer(
    help="People of a model that knows them: add, list, export, delete, ask.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(help="folder of a user adapter")]
Name = Annotated[str, typer.Argument(help="name of the person, which is stored as a hash, or that hash")]


@users_app.command("add")
def users_add(
    folder: Folder,
    name: Name,
    votes: Annotated[list[Path] | None, typer.Option(help="votes, .jsonl; repeatable")] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="folder of results that was voted on; repeatable")
    ] = None,
    rater: Annotated[str, typer.Option(help="whose votes; else those of NAME")] = "",
    features: Annotated[
        str, typer.Option(help="scorer whose towers the encoder reads; else the adapter's")
    ] = "",
    reward: Annotated[Path | None, typer.Option(help="PAL reward of a table's prototypes")] = None,
    vector: Annotated[Path | None, typer.Option(help="safetensors with the one tensor of the person")] = None,
) -> None:
    """Learn of somebody new from a few votes, or store a vector that was made elsewhere.

    Example: diffalign users add outputs/run/export/users anna --votes anna.jsonl --images outputs/results
    """
    from diffalign.cli import one_clear_line
    from diffalign.personalize.from_votes import open_users

    with one_clear_line():
        if (vector is None) == (votes is None or images is None):
            raise ValueError("name --votes and --images, or --vector")
        users = open_users(folder)
        if vector is not None:
            from diffalign.personalize.files import one_tensor
            from diffalign.personalize.from_votes import fitting

            found, count = fitting(folder, one_tensor(vector)), 0
        else:
            from diffalign.personalize.from_votes import decided_votes, vector_from_votes
            from diffalign.votes.pictures import find_pictures
            from diffalign.votes.rows import read_votes

            own = decided_votes(read_votes(votes or []), rater or name)
            pictures = find_pictures(images or [])
            found, count = (
                vector_from_votes(folder, own, pictures, features=features, reward=reward),
                len(own),
            )
        person = users.add(name, found, votes=count)
        typer.echo(f"{person.id} is stored, from {count} votes" if count else f"{person.id} is stored")


@users_app.command("list")
def users_list(folder: Folder) -> None:
    """List people: hashed id, votes that their vector was made of, when they came.

    Example: diffalign users list outputs/run/export/users
    """
    from diffalign.cli import one_clear_line
    from diffalign.personalize.users import Users

    with one_clear_line():
        users = Users(folder)
        for person in users.people():
            typer.echo(f"{person.id}  {person.votes:5d} votes  {person.added}")
        typer.echo(f"{len(users.ids())} people, stored as {users.kind}")


@users_app.command("export")
def users_export(
    folder: Folder,
    name: Name,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="new JSON file; else printed")] = None,
) -> None:
    """Give out everything that is stored of somebody.

    Example: diffalign users export outputs/run/export/users anna --output anna.json
    """
    from diffalign.cli import one_clear_line
    from diffalign.evaluate.report import write_atomic
    from diffalign.personalize.users import Users

    with one_clear_line():
        text = json.dumps(Users(folder).export(name), indent=1)
        if output is None:
            typer.echo(text)
            return
        if output.exists():
            raise FileExistsError(f"{output} exists: choose another --output")
        typer.echo(write_atomic(output, text + "\n"))


@users_app.command("delete")
def users_delete(
    folder: Folder,
    name: Name,
    also: Annotated[
        list[Path] | None, typer.Option(help="further folder to search, e.g. the run; repeatable")
    ] = None,
) -> None:
    """Take somebody out of every file of the folder, and make sure that nothing is left.

    Example: diffalign users delete outputs/run/export/users anna --also outputs/run
    """
    from diffalign.cli import one_clear_line
    from diffalign.personalize.users import Users

    with one_clear_line():
        done = Users(folder).delete(name, also or [])
        for file in done.rewritten:
            typer.echo(f"rewritten: {file}")
        typer.echo(f"{done.id} is deleted; copies elsewhere (backups, snapshots) are yours to delete")


@users_app.command("ask")
def users_ask(
    images: Annotated[list[Path], typer.Argument(help="folders of results to ask about")],
    name: Annotated[str, typer.Option(help="the person, by the rater's name in the votes")],
    votes: Annotated[list[Path] | None, typer.Option(help="votes so far, of anybody; repeatable")] = None,
    features: Annotated[str, typer.Option(help="oracle (shapes world), image, scores")] = "image,scores",
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
) -> None:
    """Name the pair whose answer tells most about somebody new.

    Example: diffalign users ask outputs/results --name anna --votes anna.jsonl --votes others.jsonl
    """
    from diffalign.cli import one_clear_line
    from diffalign.personalize.asking import ask
    from diffalign.votes.pictures import find_pictures
    from diffalign.votes.rows import read_votes

    with one_clear_line():
        kinds = [k.strip() for k in features.split(",") if k.strip()]
        found = ask(read_votes(votes or []), find_pictures(images), name, features=kinds, seed=seed)
        pair = found.pair
        typer.echo(f"{pair.a.prompt}\nseed {pair.seed}: {pair.a.path} against {pair.b.path}")
        known = f"{found.answered} votes of {name} and {found.others} other people"
        typer.echo(f"the answer is worth {found.information:.3f} of at most 0.693 nats; known from {known}")
