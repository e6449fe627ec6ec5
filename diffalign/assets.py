"""Where recipes and the pipelines of the shapes world are: in a checkout or in the installed package."""

from __future__ import annotations

import difflib
from pathlib import Path

PACKAGED = Path(__file__).parent / "assets"
"""What the wheel carries (a checkout does not have it)."""
CHECKOUT = Path(__file__).parent.parent
RECIPES = "training/recipes"


def asset(name: str | Path) -> Path:
    """Find a file or folder such as ``samples/shapes`` or ``training/recipes/shapes-unet-dpo.yaml``.

    Relative paths start at the current folder, then at the assets of the installed package, then at the root
    of a source checkout; absolute paths are taken as they are.

    Raises:
        FileNotFoundError: it is in none of these places; the message lists them.
    """
    places = _places(Path(name).expanduser())
    for place in places:
        if place.exists():
            return place
    tried = ", ".join(str(p) for p in places)
    raise FileNotFoundError(
        f"cannot find {str(name)!r} (tried {tried}); check the path, or run in the folder that it starts from"
    )


def recipe(name: str | Path) -> Path:
    """Find a recipe by its path, or by its bare name: ``shapes-unet-dpo`` or ``shapes-unet-dpo.yaml``.

    Raises:
        FileNotFoundError: there is no such recipe; the message lists those that are packaged.
    """
    path = Path(name)
    bare = [f"{RECIPES}/{path.name.removesuffix('.yaml')}.yaml"] if path.parent == Path() else []
    for candidate in (path, *map(Path, bare)):
        try:
            found = asset(candidate)
        except FileNotFoundError:
            continue
        if found.is_file():
            return found
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), recipes(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(
        f"no recipe at {str(name)!r}; packaged ones are {', '.join(recipes()) or 'none'}{hint}"
    )


def recipes() -> list[str]:
    """Names of the packaged recipes, sorted, without ``.yaml``."""
    folders = [f for f in _packaged(Path(RECIPES)) if f.is_dir()]
    return sorted(file.stem for file in folders[0].glob("*.yaml")) if folders else []


def _places(path: Path) -> list[Path]:
    return [path] if path.is_absolute() else [Path.cwd() / path, *_packaged(path)]


def _packaged(path: Path) -> list[Path]:
    """The package's own candidates; in the wheel ``training/recipes`` is called ``recipes``."""
    inside = path.relative_to("training") if path.parts[:1] == ("training",) else path
    return [PACKAGED / inside, CHECKOUT / path]
