"""User encoders: from what is known of people to the tokens that condition a model; one file per encoder."""

from __future__ import annotations

from diffalign.personalize.encoders.about import About, Examples, Profile
from diffalign.personalize.encoders.base import (
    Encoded,
    EncoderOptions,
    UserEncoder,
    encoders,
    make_options,
    names,
    options_from_json,
    options_to_json,
)

__all__ = [
    "About",
    "Encoded",
    "EncoderOptions",
    "Examples",
    "Profile",
    "UserEncoder",
    "encoders",
    "make_options",
    "names",
    "options_from_json",
    "options_to_json",
]
