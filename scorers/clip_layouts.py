"""Two layouts of the same CLIP: keys of transformers' CLIPModel turned into those of open_clip."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

WHOLE = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
}
TURNED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
"""Matrices that the two libraries multiply from different sides."""
PARTS = (
    ("text_model.final_layer_norm.", "ln_final."),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
)
INNER = (
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".self_attn.", ".attn."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under open_clip's keys, whichever of the two layouts they come in.

    A prefix ``model.`` before all keys, as mirrors have it, is taken off. Unknown keys stay as they are, so
    that a strict loader names them.
    """
    if state and all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): value for key, value in state.items()}
    if not any(key.startswith(("text_model.", "vision_model.")) for key in state):
        return dict(state)
    kept = {k: v for k, v in state.items() if not k.endswith("position_ids")}
    return _joined({_renamed(k): v.T.contiguous() if k in TURNED else v for k, v in kept.items()})


def _renamed(key: str) -> str:
    if key in WHOLE or key in TURNED:
        return WHOLE.get(key) or TURNED[key]
    for old, new in PARTS:
        if key.startswith(old):
            key = new + key.removeprefix(old)
    for old, new in INNER:
        key = key.replace(old, new)
    return key


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put queries, keys and values of a layer into one matrix, where all three are there."""
    for key in list(state):
        found = re.fullmatch(r"(.*\.attn\.)q_proj\.(weight|bias)", key)
        if found:
            parts = [f"{found[1]}{n}_proj.{found[2]}" for n in "qkv"]
            if all(part in state for part in parts):
                state[f"{found[1]}in_proj_{found[2]}"] = torch.cat([state.pop(part) for part in parts])
    return state
