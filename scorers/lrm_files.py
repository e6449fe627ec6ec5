"""Folder of a latent reward model: config.json, model.safetensors, and a folder for each tokenizer."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from scorers.clip_hf import restore_positions
from scorers.loading import build, need_folder, read_state
from scorers.lrm import Head, Lrm, LrmOptions, make_head, plain_config
from scorers.lrm_text import Form, PromptEncoders
from scorers.lrm_trunk import MMDiTTrunk, Trunk, UNetTrunk

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
DENOISERS = {"UNet2DConditionModel": UNetTrunk, "SD3Transformer2DModel": MMDiTTrunk}
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
NEEDED = ("scorer", "vae_id", "form", "options", "denoiser", "text_encoders")


class Parts(NamedTuple):
    """What an Lrm is made of."""

    trunk: Trunk
    texts: PromptEncoders
    head: Head
    options: LrmOptions
    vae_id: str


class _Whole(nn.Module):
    """Everything that has weights, in the layout of the file."""

    def __init__(self, trunk: Trunk, texts: PromptEncoders, head: Head) -> None:
        super().__init__()
        self.trunk, self.texts, self.head = trunk, texts, head


def write_lrm(lrm: Lrm, folder: Path, dtype: torch.dtype) -> None:
    """See ``Lrm.save``; every file is written beside and moved into place, the weights last."""
    from safetensors.torch import save_file

    if (folder / CONFIG).is_file():
        read_config(lrm.name, folder, FileExistsError)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        new = Path(name)
        (new / CONFIG).write_text(json.dumps(config_of(lrm), indent=2) + "\n")
        for place, tokenizer in zip(TOKENIZERS, lrm.texts.tokenizers, strict=False):
            tokenizer.save_pretrained(new / place)
        save_file(_stored(lrm, dtype), new / WEIGHTS, metadata={"format": "pt"})
        for file in sorted((f for f in new.rglob("*") if f.is_file()), key=lambda f: f.name == WEIGHTS):
            target = folder / file.relative_to(new)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)


def _stored(lrm: Lrm, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of the file; the head in float32."""
    return {
        key: value.detach().cpu().to(torch.float32 if key.startswith("head.") else dtype).clone().contiguous()
        for key, value in lrm.state_dict().items()
    }


def config_of(lrm: Lrm) -> dict[str, Any]:
    """What ``read_lrm`` needs to build the same networks."""
    net, encoders = lrm.trunk.net, [cast(Any, encoder) for encoder in lrm.texts.encoders]
    return {
        "scorer": lrm.name,
        "vae_id": lrm.vae_id,
        "form": lrm.texts.form,
        "options": asdict(lrm.options),
        "denoiser": {"class": type(net).__name__, "config": plain_config(net)},
        "text_encoders": [{"class": type(e).__name__, "config": e.config.to_dict()} for e in encoders],
    }


def read_lrm(name: str, weights: Path | None) -> Parts:
    """See ``Lrm.load``; float32, on the CPU.

    Raises:
        FileNotFoundError: no folder, or a file is missing in it.
        ValueError: another scorer's folder, networks that are not known, or weights that do not fit.
    """
    folder = need_folder(name, weights, f"folder with {CONFIG}, {WEIGHTS} and {TOKENIZERS[0]}/")
    config = read_config(name, folder, ValueError)
    options, tokenizers = _options(config["options"], folder), _tokenizers(folder, config["text_encoders"])
    # Copies, as the addresses of a mapped file are not aligned, and products then round in another order.
    state = {key: value.to(torch.float32, copy=True) for key, value in read_state(folder / WEIGHTS).items()}
    whole = build(lambda: _whole(config, options, tokenizers, folder), state, where=folder)
    restore_positions(whole)
    return Parts(whole.trunk, whole.texts, whole.head, options, str(config["vae_id"]))


def read_config(name: str, folder: Path, error: type[Exception]) -> dict[str, Any]:
    """config.json of a latent reward model; another file there is an ``error``.

    Raises:
        FileNotFoundError: there is none.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"scorer {name!r}: {folder} holds no {CONFIG}; it is written by Lrm.save")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as wrong:
        raise error(f"{file} is no JSON ({wrong}); copy it again, or name another folder") from wrong
    of = found.get("scorer") if isinstance(found, dict) else None
    if of != name:
        raise error(f"{file} is of {of or 'something else'}, not of the scorer {name!r}; name another folder")
    missing = [key for key in NEEDED if key not in found]
    if missing:
        raise error(f"{file} lacks {', '.join(missing)}; copy it again, or name another folder")
    return dict(found)


def _whole(config: Mapping[str, Any], options: LrmOptions, tokenizers: list[Any], folder: Path) -> _Whole:
    trunk = _trunk(config["denoiser"], options, folder)
    encoders = [_encoder(one, folder) for one in config["text_encoders"]]
    form: Form = config["form"]
    texts = PromptEncoders(encoders, tokenizers, form, options.t5_length)
    return _Whole(trunk, texts, make_head(trunk.widths, texts.pooled_width, options))


def _options(given: Mapping[str, Any], folder: Path) -> LrmOptions:
    known = {f.name for f in fields(LrmOptions)}
    if set(given) != known:
        raise ValueError(
            f"{folder / CONFIG}: options must be {', '.join(sorted(known))}, got {', '.join(sorted(given))}"
        )
    return LrmOptions(**{**given, "taps": tuple(given["taps"])})


def _trunk(given: Mapping[str, Any], options: LrmOptions, folder: Path) -> Trunk:
    import diffusers

    if given["class"] not in DENOISERS:
        raise ValueError(
            f"{folder / CONFIG}: no trunk is made of {given['class']!r}; {', '.join(DENOISERS)} are"
        )
    net = getattr(diffusers, given["class"]).from_config(given["config"])
    return DENOISERS[given["class"]](net, options.taps)


def _encoder(given: Mapping[str, Any], folder: Path) -> nn.Module:
    import transformers

    if given["class"] not in ENCODERS:
        raise ValueError(
            f"{folder / CONFIG}: text encoder {given['class']!r} is none of {', '.join(ENCODERS)}"
        )
    kind: Any = getattr(transformers, given["class"])
    made: nn.Module = kind(kind.config_class.from_dict(given["config"]))
    return made


def _tokenizers(folder: Path, encoders: list[Any]) -> list[Any]:
    from transformers import AutoTokenizer

    places = [folder / place for place, _ in zip(TOKENIZERS, encoders, strict=False)]
    missing = [place.name for place in places if not place.is_dir()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; copy the whole folder again")
    return [AutoTokenizer.from_pretrained(place, local_files_only=True) for place in places]
