"""PAL's mathematics: people as mixtures of a few prototypes, and rewards by nearness to a person's point."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class PalOptions:
    """What makes a PAL besides its weights; ``pal.json`` in a saved folder."""

    kind: Literal["A", "B"] = "A"
    """A: a person is a point. B: a person has a point for each prompt, by maps of the prompt."""
    nearness: Literal["angle", "dist"] = "angle"
    """Reward: scaled cosine, or minus the distance."""
    point: Literal["f(P)w", "f(Pw)", "Pw"] = "f(P)w"
    """Where PAL-A mixes: after mapping the prototypes, before mapping them, or without mapping them."""
    groups: int = 2
    """Number of prototypes."""
    feature: int = 1024
    """Width of the features of items (and of prompts, for PAL-B)."""
    width: int = 512
    """Width of the space in which points and items meet."""
    mlp: str = "mlp2-gelu-dropout0"
    """Maps: hidden layers, activation (relu, gelu, linear), dropout (5 is 0.5), and ``-nobias``."""
    hard: bool = False
    """In evaluation, a person belongs to the one group of the largest weight."""
    with_prompt: bool = False
    """An item is prompt and picture side by side, so ``feature`` counts both."""
    users: tuple[str, ...] = ()
    """Names of the known people."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: an unknown choice, a count below 1, or a person named twice.
        """
        choices = {"kind": ("A", "B"), "nearness": ("angle", "dist"), "point": ("f(P)w", "f(Pw)", "Pw")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if min(self.groups, self.feature, self.width) < 1:
            raise ValueError("groups, feature and width must be at least 1")
        object.__setattr__(self, "users", tuple(self.users))
        if len(set(self.users)) < len(self.users):
            raise ValueError("a person is named twice in users")


class Projector(nn.Module):
    """Small network; module names are those of the published checkpoints."""

    def __init__(self, spec: str, inputs: int, width: int) -> None:
        """See ``PalOptions.mlp``."""
        super().__init__()
        self.mlp = _Mlp(spec, inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., width)."""
        out: Tensor = self.mlp.layers(x)
        return out


class _Mlp(nn.Module):
    def __init__(self, spec: str, inputs: int, width: int) -> None:
        super().__init__()
        hidden, activation, dropout, bias = parse_mlp(spec)
        layers: list[nn.Module] = []
        for i in range(hidden):
            act = {"relu": nn.ReLU, "gelu": nn.GELU, "linear": nn.Identity}[activation]()
            layers += [nn.Linear(width if i else inputs, width, bias=bias), nn.Dropout(dropout), act]
        layers.append(nn.Linear(width if hidden else inputs, width, bias=bias))
        self.layers = nn.Sequential(*layers)


class _Users(nn.Module):
    """What belongs to people: a row of weights each, and prototypes (A) or maps of prompts (B)."""

    def __init__(self, options: PalOptions) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(len(options.users), options.groups))
        if options.kind == "A":
            width = options.width if options.point == "Pw" else options.feature
            self.P = nn.Parameter(F.normalize(torch.randn(options.groups, width), dim=1))
        else:
            maps = (Projector(options.mlp, options.feature, options.width) for _ in range(options.groups))
            self.projectors = nn.ModuleList(maps)


class _Temperature(nn.Module):
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(1))


class PalHead(nn.Module):
    """Rewards of items for people (Chen et al., PAL, 2024, arXiv:2406.08469)."""

    def __init__(self, options: PalOptions) -> None:
        """Random weights, as published: prototypes of length 1, people's rows from N(0, 1)."""
        super().__init__()
        self.options = options
        setattr(self, self._items, Projector(options.mlp, options.feature, options.width))
        self.user_learner = _Users(options)
        self.softmax_w = _Temperature()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def _items(self) -> str:
        return "projector" if self.options.kind == "A" else "projector_f"

    def items(self, features: Tensor) -> Tensor:
        """Features (..., feature) of items in the common space: (..., width)."""
        out: Tensor = getattr(self, self._items)(features)
        return out

    def mixture(self, users: Sequence[str]) -> Tensor:
        """(B, groups) weights of B known people, which sum to 1.

        Raises:
            ValueError: somebody unknown.
        """
        places = {name: i for i, name in enumerate(self.options.users)}
        unknown = sorted(set(users) - places.keys())
        if unknown:
            raise ValueError(
                f"PAL does not know {unknown[0]!r}; it knows {len(places)} people (fit_user adds one)"
            )
        rows = torch.tensor([places[name] for name in users], device=self.user_learner.W.device)
        return self.mix(self.user_learner.W[rows])

    def mix(self, rows: Tensor) -> Tensor:
        """(..., groups) rows of W to weights: softmax, or all on the largest where ``hard`` says so."""
        weights: Tensor = (rows / self.softmax_w.temperature).softmax(-1)
        if self.options.hard and not self.training:
            return F.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights.dtype)
        return weights

    def prototypes(self, prompts: Tensor | None = None) -> Tensor:
        """Points of the groups: (groups, width) for A; (..., groups, width) of prompts (..., feature) for B.

        Raises:
            ValueError: PAL-B without prompts.
        """
        if self.options.kind == "B":
            if prompts is None:
                raise ValueError("PAL-B needs the features of the prompts")
            return torch.stack([g(prompts) for g in self.user_learner.projectors], -2)
        P = cast(Tensor, self.user_learner.P)
        return self.items(P) if self.options.point == "f(P)w" else P

    def points(self, weights: Tensor, prototypes: Tensor) -> Tensor:
        """Points (..., width) of people with weights (..., groups) among ``prototypes``."""
        mixed = (weights[..., None] * prototypes).sum(-2)
        return self.items(mixed) if self.options.kind == "A" and self.options.point == "f(Pw)" else mixed

    def rewards(self, items: Tensor, points: Tensor) -> Tensor:
        """(...,) reward of mapped items (..., width) for people at points (..., width); higher is better."""
        if self.options.nearness == "dist":
            far: Tensor = torch.linalg.vector_norm(items - points, dim=-1)
            return -far
        scale: Tensor = self.logit_scale.exp().clamp(max=MAX_SCALE)
        return scale * F.cosine_similarity(items, points, dim=-1)

    def forward(self, items: Tensor, weights: Tensor, prompts: Tensor | None = None) -> Tensor:
        """(B,) rewards of item features (B, feature) for people with weights (B, groups).

        ``prompts`` (B, feature) are the prompts' features, for PAL-B.
        """
        return self.rewards(self.items(items), self.points(weights, self.prototypes(prompts)))

    def fit_row(
        self,
        first: Tensor,
        second: Tensor,
        label: Tensor,
        prompts: Tensor | None = None,
        *,
        prior: float = 1.0,
    ) -> Tensor:
        """Row of W of a new person from a few votes; nothing else is trained.

        By L-BFGS: the largest posterior under Bradley-Terry votes and the prior N(0, 1 / prior), from which
        rows are drawn at first.

        Args:
            first: (N, feature) features of the first items.
            second: (N, feature) of the second ones.
            label: (N,) probability that the first is preferred.
            prompts: (N, feature) features of the prompts, for PAL-B.
            prior: strength of the prior; 0 for none.

        Returns:
            (groups,) row; ``mix(row)`` are the person's weights.

        Raises:
            ValueError: no votes, or not as many of each.
        """
        if len(label) == 0 or not len(first) == len(second) == len(label):
            raise ValueError(
                f"fit_row needs votes: {len(first)}, {len(second)} items and {len(label)} labels"
            )
        with torch.no_grad():
            a, b, groups = self.items(first), self.items(second), self.prototypes(prompts)
        row = torch.zeros(self.options.groups, device=a.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([row], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            weights = (row / self.softmax_w.temperature).softmax(-1)  # soft, even where mix() is hard
            point = self.points(weights, groups)
            logit = self.rewards(a, point) - self.rewards(b, point)
            loss = F.binary_cross_entropy_with_logits(logit, label.to(logit), reduction="sum")
            loss = loss + prior / 2 * row.square().sum()
            row.grad = torch.autograd.grad(loss, row)[0]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return row.detach()


def parse_mlp(spec: str) -> tuple[int, str, float, bool]:
    """Hidden layers, activation, dropout and whether there are biases, of e.g. ``mlp2-gelu-dropout5-nobias``.

    Raises:
        ValueError: not of this form.
    """
    found = re.fullmatch(r"mlp(\d+)-(relu|gelu|linear)-dropout(\d*)(-nobias)?", spec)
    if not found:
        raise ValueError(
            f"{spec!r} is no map of PAL; write mlp2-gelu-dropout0 (or relu, linear; dropout5 is 0.5; -nobias)"
        )
    digits = found[3] or "0"
    dropout = int(digits) / 10 ** len(digits) if len(digits) > 1 else int(digits) / 10
    return int(found[1]), found[2], dropout, found[4] is None


def published_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Turn the published layout into ours: one matrix W for all people, nothing held twice.

    Args:
        state: tensors of a published learner: ``user_learner.W.<person>``, and the maps under several names.

    Returns:
        Tensors for ``PalHead``, and the names of the people in the order of the rows.
    """
    people = sorted(k.removeprefix("user_learner.W.") for k in state if k.startswith("user_learner.W."))
    twice = ("item_learner.", "user_learner.projector.", "user_learner.softmax.", "llm.", "user_learner.llm.")
    kept = {k: v for k, v in state.items() if not k.startswith((*twice, "user_learner.W."))}
    if people:
        kept["user_learner.W"] = torch.stack([state[f"user_learner.W.{name}"] for name in people])
    return kept, tuple(people)
