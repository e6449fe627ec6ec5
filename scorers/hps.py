"""HPS v1, v2 and v2.1: the cosine of pictures and prompts in CLIPs that were trained on people's choices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from scorers import catalogue
from scorers.clip_open import OpenClipScorer
from scorers.hub import HubFiles
from scorers.load_options import LoadOptions
from scorers.preprocess import Antialias, PadPreprocess, Transform


@dataclass(frozen=True, kw_only=True)
class HpsOptions(LoadOptions):
    """What may be chosen of HPS v2 and v2.1, whose published transform is one of tensors already."""

    antialias: Antialias = "modern"
    """``"reference-2023"`` gives the numbers of torchvision before 0.17, which did not smooth."""


@catalogue.register("hpsv1")
class HpsV1(OpenClipScorer):
    """HPS v1: OpenAI's ViT-L/14 with quick GELU, all weights trained. Papers print the score times 100."""

    name = "hpsv1"
    architecture = "ViT-L-14-quickgelu"
    licence = "code Apache-2.0; no licence is stated for the published weights"
    citation = "Wu et al., Human Preference Score, 2023, arXiv:2303.14420"
    weights = "hpc.pth (tgxs002/align_sd)"
    size = "428 M"


@catalogue.register("hpsv2")
class HpsV2(OpenClipScorer):
    """HPS v2: open_clip's ViT-H-14. Papers print the score times 100; not comparable with v2.1.

    Pictures are padded to squares and resized as tensors, as published; ``meta`` records it.
    """

    name = "hpsv2"
    version = "2.0"
    architecture = "ViT-H-14"
    licence = "Apache-2.0"
    citation = "Wu et al., Human Preference Score v2, 2023, arXiv:2306.09341"
    weights = "HPS_v2_compressed.pt (xswu/HPSv2)"
    hub = (HubFiles("xswu/HPSv2", ("HPS_v2_compressed.pt",)),)
    option_type: ClassVar[type[LoadOptions]] = HpsOptions
    preprocess: PadPreprocess

    @classmethod
    def transform(cls, side: int) -> Transform:
        """See OpenClipScorer."""
        return PadPreprocess(size=side)

    def take_options(self, options: LoadOptions) -> None:
        """See ScorerBase."""
        super().take_options(options)
        if isinstance(options, HpsOptions):
            self.preprocess = replace(self.preprocess, antialias=options.antialias)


@catalogue.register("hpsv2.1")
class HpsV21(HpsV2):
    """HPS v2.1: as v2, trained on cleaner data."""

    name = "hpsv2.1"
    version = "2.1"
    weights = "HPS_v2.1_compressed.pt (xswu/HPSv2)"
    hub = (HubFiles("xswu/HPSv2", ("HPS_v2.1_compressed.pt",)),)
