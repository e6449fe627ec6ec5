"""Models that are compared: pipelines, run folders and LoRAs, each known by a digest of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffalign.assets import asset

if TYPE_CHECKING:
    from diffalign.personalize.wanted import Wanted
    from diffalign.policy import Policy

Kind = Literal["pipeline", "run", "lora"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LORA_FILE = "pytorch_lora_weights.safetensors"
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class People:
    """For whom the last model makes pictures in columns of their own, as a command names them."""

    user: tuple[str, ...] = ()
    direction: tuple[str, ...] = ()
    users: str = ""
    """Folder of the adapter; that of the model where it is not named."""
    user_scale: float | None = None
    user_guidance: float | None = None


class ModelError(ValueError):
    """A model that cannot be compared; the message says which and what to give instead."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model: what it is called in tables and folders, and where its weights are."""

    name: str
    path: str
    """Folder of a pipeline, folder of a run, or folder or file of a LoRA."""
    kind: Kind
    people: str = ""
    """Folder of the user adapter, where the model makes its pictures for somebody."""
    user: str = ""
    """For whom or which, see ``personalize.wanted.Wanted``."""
    direction: str = ""
    user_scale: float | None = None
    user_guidance: float | None = None


def read_models(arguments: Sequence[str]) -> list[Model]:
    """Models of ``PATH`` or ``NAME=PATH`` arguments, the base first.

    The base is called ``base`` and the others by their folder, unless a name is given.

    Raises:
        FileNotFoundError: nothing of the three kinds at a path.
        ModelError: fewer than two models, a base that is a LoRA, or a name that is taken or cannot be one.
    """
    if len(arguments) < 2:
        raise ModelError("two models are needed, the base first: diffalign evaluate BASE ALIGNED ...")
    models = [read_model(argument, "" if i else BASE) for i, argument in enumerate(arguments)]
    if models[0].kind == "lora":
        raise ModelError(
            f"{models[0].path} is a LoRA and cannot be the base: name the pipeline that it is for first"
        )
    names = [model.name for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ModelError(f"two models are called {twice!r}: give names of your own, as in NAME=PATH")
    return models


def read_model(argument: str, name: str = "") -> Model:
    """One model of ``PATH`` or ``NAME=PATH``; ``name`` is what it is called where none is given."""
    given, separator, path = argument.partition("=")
    if not separator or Path(argument).exists():
        given, path = "", argument
    folder = locate(path)
    called = given or name or _called_after(folder)
    if NAME.fullmatch(called) is None:
        raise ModelError(
            f"{called!r} cannot name a model, for it names a folder too: give letters, digits, '.', '_' and "
            f"'-' as in NAME={path}"
        )
    return Model(name=called, path=str(folder), kind=_kind(folder, path))


def locate(path: str) -> Path:
    """Path of a folder or file that may be one of the packaged assets."""
    try:
        return asset(path)
    except FileNotFoundError:
        return Path(path)


def _called_after(folder: Path) -> str:
    own = folder.resolve()
    return own.parent.name if own.name == "export" or own.is_file() else own.name


def _kind(folder: Path, given: str) -> Kind:
    from diffalign.policy.guidance import is_guidance

    if (folder / "model_index.json").exists():
        return "pipeline"
    if (folder / "config.yaml").exists():
        return "run"
    if (folder / LORA_FILE).exists() or is_guidance(folder):
        return "lora"
    if folder.is_file() and folder.suffix == ".safetensors":
        return "lora"
    raise FileNotFoundError(
        f"no model at {given!r}: give a diffusers folder (model_index.json), a run folder (config.yaml), or "
        f"a LoRA ({LORA_FILE} or another .safetensors file)"
    )


def identity(model: Model, base: Model) -> str:
    """Digest of all that decides a model's pictures beside the sampling: weights, schedule, people, ...

    Raises:
        ModelError: a run that was trained from other weights than those of ``base``.
    """
    if model.people:
        who = (model.user, model.direction, model.user_scale, model.user_guidance)
        own = identity(replace(model, people=""), base)
        return hashlib.sha256(f"{own} {digest(model.people)} {who}".encode()).hexdigest()
    if model.kind == "pipeline":
        return digest(model.path)
    own = run_base(model) if model.kind == "run" else base_folder(base)
    if digest(own) != digest(base_folder(base)):
        raise ModelError(
            f"{model.name} was trained from {own}, which is not the base ({base_folder(base)}): what it "
            "gained over its own base would be mixed with what they differ in; name that base"
        )
    part = f"{model.path}/export" if model.kind == "run" else model.path
    settings = run_settings(model) if model.kind == "run" else ""
    return hashlib.sha256(f"{digest(own)} {digest(part)} {settings}".encode()).hexdigest()


def base_folder(base: Model) -> str:
    """Folder of the pipeline that lies under the base."""
    return run_base(base) if base.kind == "run" else base.path


def sampler_name(base: Model) -> str:
    """Class of the scheduler that all pictures of an evaluation are sampled by, that of the base."""
    file = Path(base_folder(base)) / "scheduler" / "scheduler_config.json"
    return str(json.loads(file.read_text(encoding="utf-8"))["_class_name"])


def run_base(run: Model) -> str:
    """Folder of the pipeline that a run was trained from."""
    from diffalign.train.run import read_config

    return str(locate(str(read_config(Path(run.path))["policy"]["model"])))


def run_settings(run: Model) -> str:
    """What of a run's recipe changes pictures beside the weights."""
    from diffalign.train.run import read_config

    policy = read_config(Path(run.path))["policy"]
    kept = ("adapter", "guidance", "long_prompts", "text_length")
    return repr({name: policy.get(name) for name in kept})


@cache
def digest(path: str) -> str:
    """sha256 over names and bytes of the files of a folder (its read-me files aside), or of one file.

    Raises:
        FileNotFoundError: nothing there.
    """
    root, found = Path(path), hashlib.sha256()
    if not root.exists():
        raise FileNotFoundError(f"{path} does not exist: a run that did not finish has no export folder")
    for file in sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else [root]:
        if file.suffix != ".md":
            found.update(str(file.relative_to(root)).encode())
            with open(file, "rb") as data:
                found.update(hashlib.file_digest(data, "sha256").digest())
    return found.hexdigest()


def open_model(model: Model, base: Model, text_length: int, precision: str) -> Policy:
    """Load a model for pictures, on the best device.

    Args:
        model: which.
        base: what a LoRA is put on.
        text_length: T5 tokens of SD3-type pipelines; a run has its own.
        precision: arithmetic of the denoiser, a key of ``policy.precision.DTYPES``.

    Raises:
        ModelError: a run that encodes prompts in another length.
    """
    from diffalign.personalize.wanted import attach_wanted
    from diffalign.policy import load_policy
    from diffalign.policy.guidance import is_guidance, read_guidance
    from diffalign.policy.lora import load_into
    from diffalign.policy.precision import DTYPES
    from diffalign.train.again import open_run

    if model.kind == "run":
        config, policy = open_run(Path(model.path))
        if config.policy.text_length != text_length and hasattr(policy.pipeline, "tokenizer_3"):
            raise ModelError(
                f"{model.name} encodes prompts in {config.policy.text_length} tokens, the others in "
                f"{text_length}: give --text-length {config.policy.text_length}"
            )
    else:
        policy = load_policy(
            base_folder(base) if model.kind == "lora" else model.path, text_length=text_length
        )
    if model.kind == "lora" and is_guidance(model.path):
        policy.set_guidance(read_guidance(model.path))
    elif model.kind == "lora":
        load_into(policy.pipeline, model.path)
    policy.to(share_device(), DTYPES[precision])
    if model.people:
        attach_wanted(policy.pipeline, model.people, wanted_of(model))
    return policy


def wanted_of(model: Model) -> Wanted:
    """For whom a model makes its pictures."""
    from diffalign.personalize.wanted import Wanted

    return Wanted(
        user=model.user, direction=model.direction, scale=model.user_scale, guidance=model.user_guidance
    )


def with_people(models: Sequence[Model], asked: People) -> list[Model]:
    """Models, and behind them the last one once more for each of those who are asked for.

    Raises:
        FileNotFoundError: no adapter.
        UsersError: somebody unknown.
        ValueError: a direction that the adapter does not know.
        ModelError: two columns of one name, or options of nobody.
    """
    from diffalign.personalize.wanted import Wanted, adapter_of, check_wanted

    scale, guidance = asked.user_scale, asked.user_guidance
    wanted = [Wanted(user=user, scale=scale, guidance=guidance) for user in asked.user]
    wanted += [Wanted(direction=text, scale=scale, guidance=guidance) for text in asked.direction]
    if not wanted:
        if asked != People():
            raise ModelError("people are described, and nobody is named: add --user or --direction")
        return list(models)
    folder = adapter_of(asked.users or models[-1].path)
    found = list(models)
    for who in wanted:
        check_wanted(folder, who)
        if who.called in [m.name for m in found]:
            raise ModelError(f"two columns would be called {who.called!r}: name each model and person once")
        found.append(
            replace(
                models[-1], name=who.called, people=str(folder), user=who.user, direction=who.direction,
                user_scale=who.scale, user_guidance=who.guidance,
            )
        )  # fmt: skip
    return found


def share_device() -> str:
    """Where this process computes: the GPU of its number, Apple's, else the CPU."""
    from diffalign.label.judges import own_device
    from diffalign.label.many import Share

    return own_device(Share.of_environment().rank)
