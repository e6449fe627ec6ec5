"""VP-Score (VisionPrefer): ImageReward's network, trained on pairs that a language model judged."""

from __future__ import annotations

from scorers import catalogue
from scorers.blip import BlipSizes
from scorers.imagereward import ImageReward


@catalogue.register("vp-score")
class VPScore(ImageReward):
    """A recipe, not a checkpoint: no weights were published, so it loads what was trained here.

    The published recipe: ImageReward's network and pair loss, started from BLIP-large, on 1.2 million pairs
    of pictures to 179 thousand prompts, whose order comes from marks of 1 to 5 that GPT-4V gave for following
    the prompt, beauty, fidelity and harmlessness. Rewards are not standardised unless the folder's sizes.json
    says so.
    """

    name = "vp-score"
    citation = (
        "Wu et al., Multimodal Large Language Model is a Human-Aligned Annotator for Text-to-Image "
        "Generation, 2024, arXiv:2404.15100"
    )
    weights = "folder of your own training, in ImageReward's layout; none are published"
    hub = ()
    default_sizes = BlipSizes()
