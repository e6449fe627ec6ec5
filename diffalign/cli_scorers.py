"""Commands that serve and measure scorers; ``cli`` registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(scorers_app: typer.Typer, bench_app: typer.Typer) -> None:
    """Add ``scorers list``, ``scorers convert``, ``scorers serve`` and ``bench score``."""
    scorers_app.command("list")(scorers_list)
    scorers_app.command("convert")(scorers_convert)
    scorers_app.command("serve")(scorers_serve)
    bench_app.command("score")(bench_score)


def scorers_list(
    pattern: Annotated[str, typer.Argument(help="names that fit, e.g. 'hps*'")] = "*",
    differentiable: Annotated[
        bool, typer.Option("--differentiable", help="only those whose scores have a gradient")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="names alone, one a line")] = False,
) -> None:
    """List scorers: what they score, their range, their licence, and whether their weights are here.

    Example: diffalign scorers list "clip*"
    """
    from rich.console import Console
    from rich.table import Table

    from scorers.listing import lines, list_scorers

    found = list_scorers(pattern, differentiable=True if differentiable else None)
    if plain:
        typer.echo("\n".join(one.name for one in found))
        return
    table = Table("name", "kind", "scores", "range", "gradient", "licence", "weights", box=None)
    for cells in lines(found):
        table.add_row(*cells)
    Console().print(table)


def scorers_convert(
    source: Annotated[Path, typer.Argument(help="pickled module, as MPS is published")],
    target: Annotated[Path, typer.Argument(help="new .safetensors file")],
) -> None:
    """Take the tensors out of a pickled module without running its code.

    Example: diffalign scorers convert MPS_overall_checkpoint.pth mps.safetensors
    """
    from diffalign.cli import one_clear_line
    from scorers.pickled import convert_pickled_module

    with one_clear_line():
        convert_pickled_module(source, target)
        typer.echo(target)


def scorers_serve(
    name: Annotated[str, typer.Argument(help="name, or name?option=value&...; see: diffalign scorers list")],
    weights: Annotated[Path | None, typer.Option(help="else $SCORERS_WEIGHTS/<name>")] = None,
    host: Annotated[str, typer.Option(help="address; others than loopback need a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8711,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; empty takes the best there is")] = "",
    dtype: Annotated[str, typer.Option(help="of the towers: float32, bfloat16 or float16")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="pictures that are scored at once")] = 32,
    window: Annotated[float, typer.Option(min=0, help="seconds a picture waits for others")] = 0.01,
    body: Annotated[int, typer.Option(min=1, help="MiB of a request at most")] = 256,
    memory: Annotated[int, typer.Option(min=1, help="MiB of all requests at once at most")] = 2048,
    allow_hub: Annotated[
        bool, typer.Option("--allow-hub", help="download weights that are not here from Hugging Face")
    ] = False,
) -> None:
    """Serve a scorer over HTTP; the token is read from $SCORERS_TOKEN.

    Example: diffalign scorers serve shapes-large --port 8711
    """
    import scorers
    from diffalign.cli import one_clear_line
    from diffalign.policy.precision import best_device
    from scorers.server import ServerOptions, serve
    from scorers.wire import Limits

    with one_clear_line():
        limits = Limits(body=body * 2**20)
        options = ServerOptions(
            host=host, port=port, batch=batch, window=window, limits=limits, memory=memory * 2**20
        )
        spec = scorers.Spec.parse(name)
        loaded = scorers.load_spec(
            str(spec.with_weights(str(weights)) if weights else spec), device or best_device(), dtype,
            allow_hub=allow_hub,
        )  # fmt: skip
        typer.echo(f"{spec.name} on http://{host}:{port}")
        serve(loaded, options)


def bench_score(
    architecture: Annotated[str, typer.Option(help="open_clip's name of the sizes")] = "ViT-B-32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; empty takes the best there is")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    images: Annotated[int, typer.Option(min=1, help="pictures of a round")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="pictures at once")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="threads that decode ahead")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="rounds, whose median counts")] = 3,
) -> None:
    """Print images/s of a scorer with random weights, beside the usual loop with the same weights.

    Example: diffalign bench score --images 32, or on a GPU
    diffalign bench score --architecture ViT-H-14 --dtype bfloat16 --images 1024
    """
    from diffalign.bench_score import BenchOptions
    from diffalign.bench_score import bench_score as run
    from diffalign.cli import one_clear_line
    from diffalign.policy.precision import best_device

    with one_clear_line():
        options = BenchOptions(images=images, batch=batch, workers=workers, rounds=rounds)
        for line in run(architecture, device or best_device(), dtype, options):
            typer.echo(line)
