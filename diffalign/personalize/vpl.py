"""VPL: a reward for each person who is read from their votes, with nothing trained for them.

Somebody is z ~ q(z | labelled pairs), and a picture's worth to them r(x, z) (Poddar et al., Variational
Preference Learning, 2024, arXiv:2408.10075). The posterior is that of the few-shot encoder, and r is linear
in the frozen features of x, with weights that are linear in z (published: a network of both). For evaluation,
see ``personalize.judge``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from diffalign.data.records import BytesImage, Record
from diffalign.diffusion.corrupt import draw_seed
from diffalign.personalize.encoders import About
from diffalign.personalize.encoders.about import pad_examples
from diffalign.personalize.encoders.few_shot import FewShot, FewShotOptions
from diffalign.personalize.evidence import PairFeatures, in_batches
from diffalign.personalize.foretell import learn_reward, reward
from diffalign.personalize.history import Histories
from scorers.base import ScorerBase, check_batch
from scorers.digests import image_digest
from scorers.images import ImageLike
from scorers.learners import stack_images
from scorers.preprocess import Transform
from scorers.two_tower import TwoTower
from scorers.votes import Vote, check_votes


@dataclass(frozen=True, kw_only=True)
class VplOptions:
    """How judges of VPL's type are trained."""

    width: int = 512
    """Width of z, a multiple of 8."""
    depth: int = 2
    """Blocks of the encoder of votes."""
    votes: int = 8
    """A person is described by 1 to so many votes at once; whoever has more is the mean of several such."""
    steps: int = 2000
    """Steps of AdamW, each on 32 people."""
    learning_rate: float = 3e-4
    """Peak of the learning rate."""
    kl: float = 1e-4
    """Weight of the posterior's divergence from N(0, 1), 0 or more."""
    fitted: float = 0.5
    """Share of a person's prompts whose votes describe them; the others test the judge. In (0, 1)."""
    seed: int = 0
    """Of weights, batches and splits."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: an option out of range.
        """
        if not 0 < self.fitted < 1:
            raise ValueError(f"fitted is {self.fitted}; it must be in (0, 1)")
        if self.votes < 1 or self.steps < 1:
            raise ValueError(f"votes is {self.votes} and steps {self.steps}; both must be at least 1")
        if not (self.learning_rate > 0 and self.kl >= 0):
            raise ValueError(
                f"learning_rate is {self.learning_rate} and kl {self.kl}; they must be above 0, and 0 or more"
            )
        self.encoder(1)

    def encoder(self, feature: int) -> FewShotOptions:
        """Of votes on features of this width.

        Raises:
            ValueError: a width or depth that there cannot be.
        """
        return FewShotOptions(
            tokens=2, width=self.width, feature=feature, inner=self.width, depth=self.depth, variational=True
        )


class Vpl(ScorerBase):
    """Worth of a picture to a person, by their weights of its features; ``for_user`` chooses the person.

    Args:
        backbone: gives the features; frozen.
        encoder: reads votes.
        head: from its tokens to the weights of the features.
        votes: so many votes at most are read at once.
    """

    name = "vpl"
    needs = frozenset({"user"})
    licence = "Apache-2.0; no weights are published, train your own"
    citation = "Poddar et al., Variational Preference Learning, 2024, arXiv:2408.10075"

    def __init__(self, backbone: TwoTower, encoder: FewShot, head: nn.Linear, votes: int = 8) -> None:
        """See the class."""
        super().__init__()
        self.backbone, self.encoder, self.head, self.votes = backbone, encoder, head, votes
        self.preprocess: Transform = backbone.preprocess
        self.people: dict[str, Tensor] = {}
        self.person = ""
        self.eval().requires_grad_(False)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for the chosen person: (B,) float32, differentiable in them.

        Raises:
            ValueError: nobody was chosen, wrong shapes, or not one prompt per picture.
        """
        if not self.person:
            raise ValueError("VPL judges for one person: choose one by for_user")
        check_batch(x01, prompts)
        features = self.backbone.encode_images(x01)
        with torch.autocast(features.device.type, enabled=False):
            return reward(features.float(), self.people[self.person].to(features.device))

    def for_user(self, name: str) -> Self:
        """This scorer for a known person; the model is shared.

        Raises:
            ValueError: somebody unknown.
        """
        if name not in self.people:
            raise ValueError(
                f"VPL knows no {name!r} among its {len(self.people)} people: add them by fit_user"
            )
        found = copy.copy(self)
        found.person = name
        return found

    def fit_user(
        self,
        name: str,
        first: Sequence[ImageLike],
        second: Sequence[ImageLike],
        prompts: Sequence[str],
        labels: Sequence[float],
    ) -> Self:
        """Read a new person's votes and add them to the known people; nothing is trained.

        Args:
            name: of the person.
            first: N pictures.
            second: N others.
            prompts: N prompts.
            labels: N probabilities that the first picture is preferred; ties say nothing here.

        Returns:
            This scorer for the new person.

        Raises:
            ValueError: the name is empty or taken, counts that differ, a label outside [0, 1], or no decided
                vote.
        """
        if not name or name in self.people:
            raise ValueError(f"VPL knows a {name!r} already, or it is no name; choose another")
        counts = {len(first), len(second), len(prompts), len(labels)}
        if len(counts) > 1:
            raise ValueError(f"votes do not match: pictures, prompts and labels number {sorted(counts)}")
        votes = [Vote(*vote, name) for vote in zip(first, second, prompts, labels, strict=True)]
        features = list(embed_votes(votes, _pictures(votes), self.backbone).values())
        if not features:
            raise ValueError(f"none of the {len(votes)} votes that should describe {name!r} is decided")
        self.people[name] = self.weights_by(features)
        return self.for_user(name)

    @torch.no_grad()
    def weights_by(self, votes: Sequence[PairFeatures]) -> Tensor:
        """(F,) weights of the features of pictures, by one vote or more of a person; their order is nothing.

        A reward is linear in its weights, so that the mean over sets of votes is the mean of their rewards.
        """
        parts = -(-len(votes) // self.votes)
        about = About(examples=pad_examples([votes[i::parts] for i in range(parts)]))
        found: Tensor = self.head(self.encoder(about.to(self.device)).flatten(1)).mean(0)
        return found


def train_vpl(backbone: TwoTower, votes: Sequence[Vote], options: VplOptions) -> Vpl:
    """A reward that has learnt from these people's votes to read others'; the same seed gives the same.

    Raises:
        ValueError: a label outside [0, 1], or nobody with decided votes on two prompts.
        FloatingPointError: the loss became NaN or infinite.
    """
    pictures = _pictures(votes)
    features = embed_votes(votes, pictures, backbone)
    histories = Histories([_record(vote) for vote in votes], pictures)
    device = backbone.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(draw_seed("vpl", options.seed))
        encoder = FewShot(options.encoder(backbone.encode_prompts([""]).shape[1])).to(device)
        found = learn_reward(
            encoder, histories, features, steps=options.steps, votes=options.votes,
            learning_rate=options.learning_rate, kl=options.kl, seed=options.seed,
        )  # fmt: skip
    return Vpl(backbone, encoder, found.head, options.votes)


def embed_votes(
    votes: Sequence[Vote], pictures: Sequence[tuple[str, str]], backbone: TwoTower
) -> dict[int, PairFeatures]:
    """Features of prompt, winner and loser of decided votes, by their places; each is encoded once.

    Args:
        votes: a soft label counts for the side that is likelier.
        pictures: for each vote a name of both pictures, the same where the picture is.
        backbone: gives the features.

    Raises:
        ValueError: no votes, a label outside [0, 1], or a picture that cannot be read.
    """
    check_votes(votes, "votes")
    decided = [i for i, vote in enumerate(votes) if vote.label != 0.5]
    images = {name: side for i in decided for name, side in zip(pictures[i], votes[i][:2], strict=True)}
    prompts = list(dict.fromkeys(votes[i].prompt for i in decided))
    rows = in_batches(
        list(images.values()), lambda some: backbone.encode_images(stack_images(backbone, some))
    )
    seen = dict(zip(images, rows, strict=True))
    read = dict(zip(prompts, in_batches(prompts, backbone.encode_prompts), strict=True))
    found = {}
    for i in decided:
        winner, loser = pictures[i] if votes[i].label > 0.5 else pictures[i][::-1]
        found[i] = (read[votes[i].prompt], seen[winner], seen[loser])
    return found


def _pictures(votes: Sequence[Vote]) -> list[tuple[str, str]]:
    """Names of both pictures of each vote, by their content."""
    return [(image_digest(vote.first).hex(), image_digest(vote.second).hex()) for vote in votes]


def _record(vote: Vote) -> Record:
    """A vote as histories know it; they compare pictures by names given beside, and open none."""
    images, values = (BytesImage(b""), BytesImage(b"")), (float(vote.label), 1 - float(vote.label))
    return Record(prompt=vote.prompt, images=images, kind="pair", values=values, rater=vote.user)
