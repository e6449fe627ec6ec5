"""A league or a study from its file to its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffalign.league.config import League, read_league
from diffalign.league.page import write_page
from diffalign.league.play import all_valid, missing, play
from diffalign.league.results import restore


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where runs and pages of a league go."""

    runs: Path
    page: Path
    """Without its ending."""

    @classmethod
    def of(cls, file: Path, league: League, runs: Path | None, out: Path | None) -> Places:
        """Those given, else outputs/NAME and docs, and for a study the folder studies in both."""
        own = Path("studies", file.stem) if league.parent else Path(file.stem)
        return cls(runs=runs or Path("outputs") / own, page=(out or (Path("docs") / own).parent) / file.stem)


def run_league(
    file: Path,
    *,
    runs: Path | None = None,
    out: Path | None = None,
    only: Sequence[str] = (),
    most: int = 0,
    at_once: int = 1,
    page_only: bool = False,
) -> str:
    """Make the missing runs, then the page; results that the page's json holds already count as made.

    Args:
        file: league file.
        runs: folder of the runs; None is outputs/league, or outputs/studies/NAME.
        out: where page and picture go; None is docs, or docs/studies.
        only: pipelines to run; none named is all.
        most: stop after so many runs; 0 = when all are made.
        at_once: runs at the same time.
        page_only: run nothing.

    Returns:
        One line that says what is left.
    """
    league = read_league(file)
    places = Places.of(file, league, runs, out)
    restore(places.page.with_suffix(".json"), places.runs)
    if not page_only:
        play(league.on(only), places.runs, most=most, at_once=at_once)
    write_page(league, all_valid(league, places.runs), places.page.parent, file.stem)
    return f"{len(missing(league, places.runs))} runs are left; {places.page}.md"
