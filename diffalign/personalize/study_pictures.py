"""Pictures of a study of people: the same prompts and seeds for everybody, each kind made once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffalign.atomic import write_bytes
from diffalign.evaluate.generate import Sampling, picture_seed
from diffalign.personalize.encoders import UserEncoder
from diffalign.personalize.guidance import Condition, each
from diffalign.personalize.pipeline import Attached
from diffalign.policy import Policy
from diffalign.policy.lora import AdapterConfig


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Where pictures of one model are kept, and what they are of."""

    folder: Path
    prompts: tuple[str, ...]
    sampling: Sampling
    user_guidance: float | None = None
    """Weight of guidance of its own for people, see ``Attached.use``."""

    def kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """uint8 pictures called ``name``, made if they are not there.

        Raises:
            ValueError: what is there is of other prompts or another sampler.
        """
        from safetensors import safe_open
        from safetensors.torch import save

        of = (self.prompts, self.sampling)
        whole = of if self.user_guidance is None else (*of, self.user_guidance)
        file, about = self.folder / f"{name}.safetensors", {"of": repr(whole)}
        if file.exists():
            with safe_open(file, "pt") as found:
                if found.metadata() != about:
                    raise ValueError(
                        f"{file} holds pictures of other prompts or another sampler: move its folder away"
                    )
                kept: Tensor = found.get_tensor("pictures")
                return kept
        pictures = make()
        write_bytes(file, save({"pictures": pictures.contiguous()}, about))
        return pictures


@dataclass(frozen=True, kw_only=True)
class Studio:
    """A policy with people attached, and the shelf that its pictures go to."""

    policy: Policy
    attached: Attached | None
    """None where nobody is to be served."""
    shelf: Shelf

    @property
    def encoder(self) -> UserEncoder:
        """Of the people who can be served.

        Raises:
            ValueError: nobody can.
        """
        if self.attached is None:
            raise ValueError("this studio serves nobody: open it with the adapter of people")
        return self.attached.adapter.encoder

    def base(self, seeds: int) -> Tensor:
        """(P, S, 3, H, W) pictures of the untrained base, seed 0 first."""

        def make() -> Tensor:
            with self.policy.base():
                return torch.stack([self._same(s, self.shelf.prompts) for s in range(seeds)], 1)

        return self.shelf.kept("base", make)

    def everybody(self) -> Tensor:
        """(P, 3, H, W) pictures of the model for all people, which knows nobody."""
        return self.shelf.kept("population", lambda: self._same(0, self.shelf.prompts))

    def said(self, name: str, prompts: Sequence[str]) -> Tensor:
        """(P, 3, H, W) pictures of the model for all people for prompts that say more; the noise is that of
        the study's prompts."""
        return self.shelf.kept(name, lambda: self._same(0, prompts))

    def people(self, name: str, tokens: Tensor, prompts: int | None = None) -> Tensor:
        """(U, P, 3, H, W) pictures for U people with tokens (U, K, D), of the first ``prompts`` prompts."""
        some = self.shelf.prompts[:prompts]
        return self.shelf.kept(name, lambda: self._each(each(list(tokens)), some))

    def mixtures(self, name: str, conditions: Sequence[Condition], seeds: int) -> Tensor:
        """(C, S P, 3, H, W) pictures for C mixtures of people, each alone in its batch."""

        def make() -> Tensor:
            rows = [
                torch.cat([self._each(c, self.shelf.prompts, s) for s in range(seeds)], 1) for c in conditions
            ]
            return torch.cat(rows)

        return self.shelf.kept(name, make)

    def _same(self, seed: int, prompts: Sequence[str]) -> Tensor:
        if self.attached is not None:
            self.attached.nobody()
        return self._made(prompts, self.shelf.prompts, seed)

    def _each(self, condition: Condition, prompts: Sequence[str], seed: int = 0) -> Tensor:
        """(U, P, 3, H, W): people in groups that fill a batch, each with all prompts."""
        if self.attached is None:
            raise ValueError("this studio serves nobody: open it with the adapter of people")
        count, at_once = len(condition.tokens), max(1, self.shelf.sampling.batch // len(prompts))
        rows = []
        for start in range(0, count, at_once):
            some = slice(start, start + at_once)
            scale = self.attached.adapter.branch.scale * condition.scale[some]
            self.attached.condition = Condition(tokens=condition.tokens[some], scale=scale)
            self.attached.user_guidance = self.shelf.user_guidance
            here = len(condition.tokens[some])
            rows.append(self._made(list(prompts) * here, list(prompts) * here, seed).unflatten(0, (here, -1)))
        self.attached.nobody()
        return torch.cat(rows)

    def _made(self, prompts: Sequence[str], noises: Sequence[str], seed: int) -> Tensor:
        """(N, 3, H, W) uint8; the noise of each is that of a prompt of ``noises``."""
        sampling = self.shelf.sampling
        parts = []
        for i in range(0, len(prompts), sampling.batch):
            some = slice(i, i + sampling.batch)
            found = self.policy.generate(
                list(prompts[some]),
                [picture_seed(p, seed) for p in noises[some]],
                steps=sampling.steps,
                guidance=sampling.guidance,
            )
            parts.append((found.clamp(0, 1) * 255).round().to(torch.uint8).cpu())
        return torch.cat(parts)


def open_studio(model: str, lora: AdapterConfig, users: Path | None, shelf: Shelf) -> Studio:
    """Load a pipeline with a LoRA, and with the adapter of single people where there is one.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    from diffalign.personalize.pipeline import attach
    from diffalign.policy import load_policy

    policy = load_policy(model, lora)
    attached = None if users is None else attach(policy.pipeline, users)
    return Studio(policy=policy, attached=attached, shelf=shelf)
