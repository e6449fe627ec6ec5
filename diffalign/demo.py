"""``diffalign demo``: from preferences to a better model, on a laptop, in a few minutes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

RECIPE = "training/recipes/shapes-unet-dpo.yaml"

INTRO = """[bold]diffalign demo[/bold]: a tiny Stable-Diffusion-type model draws shapes. A simulated person
who likes shapes [bold]{taste}[/bold] votes on pairs of its pictures; the model learns from the noisy votes by
Diffusion-DPO, and is then judged, on prompts that it never saw, against itself before training.
"""

NEXT = """
[bold]What next?[/bold]
  another taste       diffalign demo --taste high
  your own model      diffalign recipes copy sd15-dpo-lora my.yaml && diffalign train my.yaml --dry-run
  look at the result  open {gallery} in a browser
"""


def demo(output: str = "outputs/demo", taste: str = "large", console: Console | None = None) -> Path:
    """Run the demo and return its folder; an older demo there is moved aside, never overwritten.

    Raises:
        ValueError: no such taste.
        FileExistsError: there is something at ``output`` that is no run.
    """
    from diffalign.train.align import align
    from diffalign.world.raters import named_rater

    named_rater(taste)
    console = console or Console()
    folder = Path(output)
    set_aside(folder)
    console.print(INTRO.format(taste=taste))
    overrides = [f"output={folder}", f"data.world.taste={taste}", f"evaluate.judges=[shapes-{taste}]"]
    if taste != "large":
        overrides.append(
            "evaluate.trained_on=[]"
        )  # the packaged scorer was trained on votes of the taste "large"
    align(RECIPE, *overrides)
    console.print(NEXT.format(gallery=folder / "gallery.html"), highlight=False)
    return folder


def set_aside(folder: Path) -> None:
    """Rename an existing run folder to folder.1, folder.2, ...; an empty one stays.

    Raises:
        FileExistsError: it is no run folder, so it may be anything of the user's.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not any((folder / name).is_file() for name in ("config.yaml", "report.json")):
        raise FileExistsError(f"{folder} exists and is no run folder: choose another --output")
    i = 1
    while folder.with_name(f"{folder.name}.{i}").exists():
        i += 1
    folder.rename(folder.with_name(f"{folder.name}.{i}"))
