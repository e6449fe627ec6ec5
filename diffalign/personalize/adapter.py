"""What makes a model one of single people: a user encoder, and keys and values of its tokens in every layer.

A saved adapter is a folder of ``user_adapter_config.json`` and ``diffalign_user_adapter.safetensors``
(encoder and layers), beside the store of people (``users``), which alone holds what belongs to single people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.attention.decoupled import Implementation
from diffalign.attention.processors import attach_users
from diffalign.attention.user_keys import UserKeys
from diffalign.evaluate.report import write_atomic
from diffalign.personalize.encoders import EncoderOptions, UserEncoder, options_from_json, options_to_json
from diffalign.personalize.encoders.table import Table, TableOptions
from diffalign.personalize.files import read_tensors, write_tensors
from diffalign.personalize.users import INDEX, Users, UsersError

CONFIG, WEIGHTS = "user_adapter_config.json", "diffalign_user_adapter.safetensors"
FORMAT = 1
ENCODER, LAYERS = "encoder.", "layers."


@dataclass(frozen=True, kw_only=True)
class BranchOptions:
    """How user tokens enter a model."""

    rank: int = 0
    """Rank of keys and values; 0 is full rank, 64 is usual for SDXL."""
    scale: float = 1.0
    """Weight of the attention to users at inference, where none is asked for."""
    features: str = ""
    """Address of the scorer whose towers made the features of votes, for people who come later."""
    base: str = ""
    """Name of the model that it was trained on, for errors."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a negative rank.
        """
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank}; it must be 0 (full) or above")


@dataclass(frozen=True, kw_only=True)
class UserAdapter:
    """Encoder and layers of a model that has them attached."""

    encoder: UserEncoder
    layers: Mapping[str, UserKeys]
    """By the name of the layer; they are submodules of the model too."""
    branch: BranchOptions
    model: str
    """Class of the model."""

    def parameters(self) -> list[nn.Parameter]:
        """All weights of encoder and layers."""
        return [*self.encoder.parameters(), *(p for keys in self.layers.values() for p in keys.parameters())]

    def groups(self, encoder_rate: float, branch_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups of an optimiser: values, people's rows, vectors and norms do not decay.

        The values begin at zero, and only they have a gradient then: warm up for 100 steps or more.
        """
        own = [(n not in self.encoder.personal, p) for n, p in self.encoder.named_parameters()]
        keys = [(not n.startswith("v."), p) for k in self.layers.values() for n, p in k.named_parameters()]
        found = []
        for parts, rate in ((own, encoder_rate), (keys, branch_rate)):
            for decays in (True, False):
                some = [p for may, p in parts if (may and p.ndim > 1) == decays]
                found.append({"params": some, "lr": rate, "weight_decay": weight_decay if decays else 0.0})
        return [group for group in found if group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """Weights by the names of the file; no person's rows."""
        layers = {f"{LAYERS}{n}.{m}": v for n, k in self.layers.items() for m, v in k.state_dict().items()}
        return {f"{ENCODER}{n}": v for n, v in self.encoder.weights().items()} | layers


def add_users(
    denoiser: Any,
    encoder: EncoderOptions,
    branch: BranchOptions | None = None,
    *,
    people: int = 0,
    backend: str = "auto",
    implementation: Implementation = "auto",
) -> UserAdapter:
    """Give a diffusers UNet or transformer a new encoder and new layers; it computes what it did before.

    Args:
        denoiser: the model; its own weights stay as they are, also their ``requires_grad``.
        encoder: which encoder.
        branch: see BranchOptions.
        people: how many people have a row in the encoder's table.
        backend: of the text's attention, see ``attention.backends``.
        implementation: of the attention to users.

    Raises:
        ValueError: users are attached already, or the model is of a family that takes none.
        RuntimeError: the backend cannot be used on the model's device.
    """
    branch = branch or BranchOptions()
    layers = attach_users(
        denoiser, encoder.width, rank=branch.rank, backend=backend, implementation=implementation
    )
    made = encoder.make(people).to(denoiser.device)
    return UserAdapter(encoder=made, layers=layers, branch=branch, model=type(denoiser).__name__)


def save_adapter(adapter: UserAdapter, folder: Path | str, *, overwrite: bool = False) -> Path:
    """Write configuration and weights; people are not among them (``Users.add_all``).

    Raises:
        FileExistsError: the folder holds an adapter and ``overwrite`` is off.
    """
    folder = Path(folder)
    if (folder / CONFIG).exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a user adapter: choose another folder")
    config = {
        "format": FORMAT, "model": adapter.model, "branch": asdict(adapter.branch),
        "encoder": options_to_json(adapter.encoder.options), "layers": list(adapter.layers),
    }  # fmt: skip
    write_tensors(folder / WEIGHTS, adapter.tensors())
    write_atomic(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    return folder


def load_adapter(
    denoiser: Any, folder: Path | str, *, backend: str = "auto", implementation: Implementation = "auto"
) -> UserAdapter:
    """Attach a saved adapter, with the people of the folder in the encoder's table.

    Raises:
        FileNotFoundError: the folder holds no adapter, or not all of its files.
        ValueError: it is of another model, or damaged; see ``add_users``.
        RuntimeError: see ``add_users``.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config["model"] != type(denoiser).__name__:
        raise ValueError(
            f"the user adapter in {folder} is of a {config['model']}{_of(config)}, and this is a "
            f"{type(denoiser).__name__}: take the model that it was trained on"
        )
    options = encoder_options(config, folder)
    tensors, rows, before = (
        read_tensors(folder / WEIGHTS)[0],
        _people(folder, options),
        denoiser.attn_processors,
    )
    adapter = add_users(
        denoiser, options, branch_options(config, folder), people=len(rows), backend=backend,
        implementation=implementation,
    )  # fmt: skip
    try:
        _fill(adapter, tensors, rows, f"{folder / WEIGHTS}{_of(config)}")
    except ValueError:
        denoiser.set_attn_processor(before)
        raise
    return adapter


def load_encoder(folder: Path | str) -> UserEncoder:
    """The encoder of a saved adapter alone, in evaluation mode, with the people of the folder in its table.

    Raises:
        FileNotFoundError: the folder holds no adapter, or not all of its files.
        ValueError: it is damaged.
    """
    folder = Path(folder)
    options = encoder_options(read_config(folder), folder)
    rows = _people(folder, options)
    adapter = UserAdapter(encoder=options.make(len(rows)), layers={}, branch=BranchOptions(), model="encoder")
    tensors = read_tensors(folder / WEIGHTS)[0]
    own = {name: value for name, value in tensors.items() if name.startswith(ENCODER)}
    _fill(adapter, own, rows, str(folder / WEIGHTS))
    return adapter.encoder.eval().requires_grad_(False)


def read_config(folder: Path) -> dict[str, Any]:
    """Configuration of a saved adapter.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or of another version.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: give the folder of a user adapter")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON ({error}): copy it again") from error
    wanted = {"format", "model", "branch", "encoder", "layers"}
    if not isinstance(found, dict) or set(found) != wanted or found["format"] != FORMAT:
        raise ValueError(f"{file} is no configuration in format {FORMAT}: use the version that wrote it")
    return found


def encoder_options(config: Mapping[str, Any], folder: Path) -> EncoderOptions:
    """Options of the encoder of a configuration.

    Raises:
        ValueError: they are damaged.
    """
    try:
        return options_from_json(config["encoder"])
    except TypeError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def tokens_of(encoder: UserEncoder, users: Users, name: str) -> Tensor:
    """(K, D) tokens of somebody in the store.

    Raises:
        UsersError: unknown, or stored for another encoder.
    """
    vector = users.vector(name)
    shape = (encoder.options.tokens, encoder.options.width)
    if users.kind == "tokens" and tuple(vector.shape) == shape:
        return vector
    prototypes = encoder.prototypes if isinstance(encoder, Table) else None
    if users.kind == "weights" and prototypes is not None and len(vector) == len(prototypes):
        assert isinstance(encoder, Table)  # for mypy
        with torch.no_grad():
            return encoder.tokens(vector[None].to(prototypes.device))[0]
    raise UsersError(
        f"{users.folder} stores people as {users.kind} {tuple(vector.shape)}, which are none of this "
        f"encoder, whose tokens are {shape}: people and adapter do not belong together"
    )


def branch_options(config: Mapping[str, Any], folder: Path) -> BranchOptions:
    """Options of the layers of a configuration.

    Raises:
        ValueError: they are of another version.
    """
    given, known = config["branch"], {f.name for f in fields(BranchOptions)}
    if not isinstance(given, dict) or set(given) - known:
        raise ValueError(
            f"{folder / CONFIG}: branch has options that there are not; use the version that wrote it"
        )
    return BranchOptions(**given)


def _of(config: Mapping[str, Any]) -> str:
    base = config["branch"].get("base")
    return f" ({base})" if base else ""


def _people(folder: Path, options: EncoderOptions) -> Tensor:
    """Rows of the encoder's table, where it has one."""
    if not isinstance(options, TableOptions) or not (folder / INDEX).is_file():
        return torch.zeros(0)
    return Users(folder).matrix()


def _fill(adapter: UserAdapter, tensors: Mapping[str, Tensor], rows: Tensor, where: str) -> None:
    """Put the weights of a file, and people's rows, into encoder and layers."""
    wanted = adapter.tensors()
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape]
    if wrong:
        raise ValueError(
            f"{where} does not fit this {adapter.model}: {len(wrong)} tensors are missing, left over or of "
            f"another shape ({', '.join(wrong[:3])}); it was trained on another model"
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(tensors[name])
        if isinstance(adapter.encoder, Table) and len(rows):
            people = adapter.encoder.people
            if people.shape != rows.shape:
                raise UsersError(
                    f"people have vectors {tuple(rows.shape[1:])} and the encoder's table rows "
                    f"{tuple(people.shape[1:])}: people and adapter do not belong together"
                )
            people.copy_(rows)
