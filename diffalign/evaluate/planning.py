"""How many prompts an evaluation needs, before any picture is made."""

from __future__ import annotations

from diffalign.evaluate.stats import power_pairs, power_prompts

SEEDS = (1, 2, 4, 8)


def plan_lines(win_rate: float, correlation: float, power: float = 0.8) -> list[str]:
    """Lines that say how many pairs and prompts show a win rate, by number of seeds.

    Args:
        win_rate: true share of pairs won, ties aside; not 0.5.
        correlation: of the outcomes of two seeds of a prompt, in [0, 1].
        power: chance to find it.

    Raises:
        ValueError: a win rate that cannot be planned for, or a correlation outside [0, 1].
    """
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation is {correlation}: it must be in [0, 1]")
    pairs = power_pairs(win_rate, power=power)
    lines = [
        f"a true win rate of {win_rate:g} is found with {power:.0%} power (two-sided 5 %, ties aside) by "
        f"{pairs} independent pairs",
        f"seeds of a prompt are not independent; at a correlation of {correlation:g}:",
    ]
    for seeds in SEEDS:
        prompts = power_prompts(win_rate, seeds=seeds, correlation=correlation, power=power)
        worth = seeds / (1 + (seeds - 1) * correlation)
        pairs = prompts * seeds
        lines.append(
            f"  {seeds} seeds: {prompts} prompts, {pairs} pairs (a prompt is worth {worth:.1f} of them)"
        )
    return [*lines, "more prompts beat more seeds"]
