"""LPIPS: distance of two pictures as a network sees them, and the diversity that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.diversity import mean_squared_distance
from scorers.loading import build, need_weights, read_state
from scorers.protocol import Kind, Need
from scorers.sets import SetScorer

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
WEIGHTS = "folder with a torchvision trunk (alexnet, vgg16 or squeezenet1_1) and its lpips/weights/v0.1 file"
CITATION = "Zhang et al., The Unreasonable Effectiveness of Deep Features, 2018, arXiv:1801.03924"


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """Where a torchvision network is tapped."""

    network: str
    """Its function in torchvision.models; the numbers below count the entries of its ``features``."""
    taps: tuple[int, ...]
    channels: tuple[int, ...]


TRUNKS = {
    "alex": Trunk(network="alexnet", taps=(1, 4, 7, 9, 11), channels=(64, 192, 384, 256, 256)),
    "vgg": Trunk(network="vgg16", taps=(3, 8, 15, 22, 29), channels=(64, 128, 256, 512, 512)),
    "squeeze": Trunk(
        network="squeezenet1_1",
        taps=(1, 4, 7, 9, 10, 11, 12),
        channels=(64, 128, 256, 384, 384, 512, 512),
    ),
}


class Network(nn.Module):
    """Trunk and the weight of each of its channels.

    Args:
        kind: a key of TRUNKS.
    """

    def __init__(self, kind: str) -> None:
        """See the class; weights are random."""
        super().__init__()
        import torchvision

        self.taps = TRUNKS[kind].taps
        whole = getattr(torchvision.models, TRUNKS[kind].network)(weights=None).features
        self.features = whole[: self.taps[-1] + 1]
        self.lins = nn.ParameterList(torch.ones(1, c, 1, 1) for c in TRUNKS[kind].channels)

    def maps(self, x01: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w) of unit length along C, of pictures (B, 3, H, W) in [0, 1], one at each tap."""
        x = 2 * x01 - 1
        shift, scale = (x.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        x, found = ((x - shift) / scale).to(self.lins[0].dtype), []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                found.append(normalised(x.float()))
        return found


def normalised(x: Tensor) -> Tensor:
    """(B, C, h, w) divided by its length along C plus 1e-10."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + EPS)


def layer_distance(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """(B,) mean over places of the weighted squared difference of two normalised (B, C, h, w) maps.

    ``weight`` is (1, C, 1, 1); see eq. 1 of arXiv:1801.03924.
    """
    return (weight.float() * (first - second).square()).sum(1).mean((1, 2))


class _Lpips(ScorerBase):
    """What distance and diversity have in common."""

    licence = "Apache-2.0 (own code); weights of lpips BSD-2, of torchvision BSD-3"
    citation = CITATION
    weights = WEIGHTS
    size = "2.5M (alex), 14.7M (vgg), 0.7M (squeeze)"

    def __init__(self, network: Network) -> None:
        """``network`` is put into evaluation mode and frozen."""
        super().__init__()
        self.network = network
        self.eval().requires_grad_(False)

    @classmethod
    def _network(cls, weights: Path | None, dtype: torch.dtype) -> Network:
        path = need_weights(cls.name, weights, WEIGHTS)
        kind, state = read_lpips(path)
        return build(lambda: Network(kind), state, where=path).to(dtype)


@catalogue.register("lpips")
class Lpips(_Lpips):
    """Distance of a picture from a reference, 0 for the same; use ``distance``, as there is no prompt."""

    name = "lpips"
    dims = ("distance",)
    range = (0.0, float("inf"))
    higher_better = False
    kind: Kind = "pairwise"
    needs: frozenset[Need] = frozenset({"reference"})

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Lpips:
        """Load trunk and weights; see ``read_lpips``.

        Raises:
            FileNotFoundError: no weights.
            ValueError: weights that are not those of one of the three trunks, key by key.
        """
        return cls(cls._network(weights, dtype)).to(device)

    def distance(self, x01: Tensor, references: Tensor) -> Tensor:
        """(B,) float32 distances of (B, 3, H, W) pictures in [0, 1] from B references; differentiable.

        Raises:
            ValueError: shapes that differ, or are not (B, 3, H, W).
        """
        check_batch(x01, [""] * len(x01))
        if references.shape != x01.shape:
            raise ValueError(
                f"pictures are {tuple(x01.shape)} and references {tuple(references.shape)}: bring both to "
                "one size"
            )
        return torch.stack(self.layers(x01, references)).sum(0)

    def layers(self, x01: Tensor, references: Tensor) -> list[Tensor]:
        """(B,) part of the distance at each tap."""
        maps = zip(self.network.maps(x01), self.network.maps(references), self.network.lins, strict=True)
        return [layer_distance(a, b, w) for a, b, w in maps]

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Refuse, as a picture alone has no distance.

        Raises:
            ValueError: always.
        """
        raise ValueError("lpips compares a picture with a reference: call distance(pictures, references)")


@catalogue.register("lpips-diversity")
class LpipsDiversity(SetScorer, _Lpips):
    """Mean LPIPS distance between different pictures of a prompt."""

    name = "lpips-diversity"
    range = (0.0, float("inf"))

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> LpipsDiversity:
        """See ``Lpips.load``."""
        return cls(cls._network(weights, dtype)).to(device)

    def features(self, x01: Tensor) -> Tensor:
        """(B, D) features whose squared Euclidean distance is LPIPS: maps times sqrt(weight / places)."""
        pairs = zip(self.network.maps(x01), self.network.lins, strict=True)
        parts = [m * (w.float() / (m.shape[2] * m.shape[3])).sqrt() for m, w in pairs]
        return torch.cat([p.flatten(1) for p in parts], 1)

    def of_set(self, features: Tensor) -> Tensor:
        """See SetScorer."""
        return mean_squared_distance(features)


def read_lpips(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Kind of trunk, and its state with the names of ``Network``.

    Args:
        path: a file with everything under the names of the lpips package (``net.slice1.0.weight``,
            ``lin0.model.1.weight``), or a folder of a torchvision file (``features.0.weight``) and one of
            lpips' own (``lin0.model.1.weight``).

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no weights of channels, or of none of the three trunks.
    """
    files = [path] if path.is_file() else [f for f in sorted(path.iterdir()) if f.suffix in SUFFIXES]
    if not files:
        raise FileNotFoundError(f"{path} holds no {', '.join(SUFFIXES)}; it must be a {WEIGHTS}")
    found = {k: v for file in files for k, v in read_state(file).items()}
    state = {new: value for key, value in found.items() if (new := _renamed(key)) is not None}
    channels = tuple(state[key].shape[1] for key in sorted(state) if key.startswith("lins."))
    kind = next((name for name, trunk in TRUNKS.items() if trunk.channels == channels), None)
    if kind is None:
        raise ValueError(
            f"{path}: weights of channels {channels or 'are missing (lin0.model.1.weight, ...)'} belong to "
            f"none of {', '.join(TRUNKS)}; it must be a {WEIGHTS}"
        )
    _check_sign(path, state)
    return kind, _only_used(state, TRUNKS[kind].taps[-1])


def _renamed(key: str) -> str | None:
    """Name in ``Network``; None for what is not needed: the classifier, copies, constants."""
    parts = key.split(".")
    if parts[0].startswith("lin") and parts[0][3:].isdigit():
        return f"lins.{int(parts[0][3:])}"
    if parts[0] == "net" and len(parts) > 3:
        return ".".join(["features", *parts[2:]])
    return None if parts[0] in ("classifier", "lins", "scaling_layer") else key


def _only_used(state: Mapping[str, Tensor], last: int) -> dict[str, Tensor]:
    """Without the layers behind the last tap."""
    return {k: v.float() for k, v in state.items() if not (k.startswith("features.") and _place(k) > last)}


def _place(key: str) -> int:
    number = key.split(".")[1]
    return int(number) if number.isdigit() else 0


def _check_sign(path: Path, state: Mapping[str, Tensor]) -> None:
    if any((v < 0).any() for k, v in state.items() if k.startswith("lins.")):
        raise ValueError(f"{path}: weights of channels are negative, so this would be no distance")
