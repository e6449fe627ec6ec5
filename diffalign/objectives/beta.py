"""One canonical beta, and the conventions that papers and scripts write it in.

Canonical: errors are means over the D elements of a latent and the logit has the 1/2,
z = -(beta / 2) ((e_w - r_w) - (e_l - r_l)).
"""

from __future__ import annotations

from typing import Literal

BetaConvention = Literal[
    "canonical", "salesforce", "diffusers_sd15", "diffusion_kto", "paper_sum", "paper_eq46"
]

_FACTORS: dict[str, tuple[float, bool]] = {
    "canonical": (1.0, False),
    "salesforce": (1.0, False),  # DiffusionDPO's train.py; also diffusers' SDXL script, InPO, DCPO, flow_grpo
    "diffusers_sd15": (2.0, False),  # train_diffusion_dpo.py: no 1/2, so its 2500 is 5000 here
    "diffusion_kto": (2.0, False),
    "paper_sum": (2.0, True),  # pseudo-code of arXiv:2311.12908, appendix: sum of squares, no 1/2
    "paper_eq46": (1.0, True),  # arXiv:2311.12908 eq. 46: sum of squares with the 1/2
}


def canonical_beta(beta: float, convention: BetaConvention, elements: int | None = None) -> float:
    """Convert a beta to the canonical convention.

    Args:
        beta: the value as the paper or script states it.
        convention: which convention it is stated in.
        elements: D, latent elements per image (16,384 for SD1.5 at 512 px); needed by the sum conventions.

    Raises:
        ValueError: a sum convention without ``elements``.
    """
    factor, summed = _FACTORS[convention]
    if summed and elements is None:
        raise ValueError(
            f"beta_convention {convention!r} sums over the latent: its size is needed to convert beta"
        )
    return beta * factor * (elements or 1 if summed else 1)


def sum_beta(beta: float, elements: int) -> float:
    """Beta on summed errors that equals canonical ``beta`` on mean errors of ``elements`` elements (beta /
    D).
    """
    return beta / elements
