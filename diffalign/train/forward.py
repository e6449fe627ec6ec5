"""From a batch of latents to the errors that objectives ask for: one pass of policy and reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffalign.data.loader import Batch
from diffalign.device import send
from diffalign.diffusion.corrupt import Corrupted, Network, Predict, draw_seed, seeded_noise
from diffalign.diffusion.region import region_error
from diffalign.diffusion.spaces import BoundSpace, Native, Space, squared_error
from diffalign.diffusion.weights import error_weight
from diffalign.objectives import Denoised, Predictions
from diffalign.objectives.seppo import SePPO
from diffalign.policy import Policy
from diffalign.policy.family import Cond
from diffalign.policy.modes import evaluating
from diffalign.policy.people import person, without_people
from diffalign.train.conditions import Conditioner, Conditions
from diffalign.train.config import TrainConfig
from diffalign.train.error_cache import ErrorCache, error_context
from diffalign.train.extras import further_errors, rollout_distance
from diffalign.train.terms import Term

Phase = Callable[[str], None]


class Forward:
    """Corrupts batches and runs policy and reference on the very same inputs, for all terms at once."""

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        accelerator: Accelerator,
        phase: Phase,
        averaged: Callable[[], AbstractContextManager[None]] = nullcontext,
        people: Conditioner | None = None,
    ) -> None:
        """Bind the spaces to the policy.

        Args:
            config: recipe.
            policy: where it is trained, with its reference.
            accelerator: autocast and device.
            phase: told what a step is doing, for the clock.
            averaged: context in which the policy has its averaged weights.
            people: who judged what, where the policy is conditioned on people.

        Raises:
            ValueError: corruptor or space do not fit the model.
        """
        self.config, self.policy, self.accelerator = config, policy, accelerator
        self.phase, self.averaged, self.people = phase, averaged, people
        self.losses: dict[str, Tensor] = {}
        """Losses of the last batch's user tokens alone."""
        self.terms = config.all_terms
        self.needs = frozenset[str]().union(*(t.objective.needs for t in self.terms))
        self.needs_reference = any(t.objective.needs_reference for t in self.terms)
        config.corruptor.check(policy.process)
        self.bound: dict[Space, BoundSpace] = {t.space: t.space.bind(policy) for t in self.terms}
        unprompted = getattr(config.corruptor, "conditioning", "own") == "empty"
        self.kept = self._open_kept()
        self.empty = policy.encode_prompts([""])[0] if unprompted else None

    def __call__(self, batch: Batch, step_seed: int = 0) -> list[Denoised]:
        """Rows of every term, in the order of ``terms``; all parts of a step have the same ``step_seed``."""
        count = int(batch.group.max()) + 1  # the loader's batches are on the host, so nothing waits
        units = self._unit_seeds(batch)
        who = None if self.people is None else self.people.conditions(batch, units)
        self.losses = {} if who is None else who.losses
        batch = batch.to(self.accelerator.device)
        own = batch if who is None else replace(batch, cond=batch.cond | who.own)
        x0 = self.policy.scale_latents(self._latents(batch, units)).to(self.dtype)
        self.policy.opponent.choose(step_seed, units)
        noisy = self.config.corruptor(
            x0, units, self.policy.process, self.config.timesteps, self._oracle(own)
        )
        self.phase("policy")
        pred = self.predict(noisy.x_t, noisy.t, own.cond, batch)
        ref_errors, ref_pred = self._reference(noisy, batch, units)
        rows = self._rows(own, noisy, x0, count)
        rows.extra = {**rows.extra, **self._of_others(noisy, batch, who)}
        if "tensors" in self.needs:
            rows.tensors = Predictions(
                pred=pred, ref_pred=ref_pred, target=noisy.target, x_t=noisy.x_t, x0=x0
            )
        errors = {space: self._error(space, pred, noisy, batch) for space in self.bound}
        return [self._of_term(rows, term, errors, ref_errors) for term in self.terms]

    @property
    def dtype(self) -> torch.dtype:
        """Of latents and losses."""
        return torch.float64 if self.config.precision == "fp64" else torch.float32

    def predict(self, x: Tensor, t: Tensor, cond: Cond, batch: Batch) -> Tensor:
        """Native prediction of whichever network is active."""
        with self.accelerator.autocast():
            return self.policy.predict(x, t, cond, batch.sizes)

    def _rows(self, batch: Batch, noisy: Corrupted, x0: Tensor, count: int) -> Denoised:
        """What the rows of all terms share; the errors are still to come."""
        weight = error_weight(self.config.error_weight, self.policy.process, noisy.t)
        return Denoised(
            error=batch.weight, ref_error=None, group=batch.group, role=batch.role, t=noisy.t,
            t_weight=self._typed(weight), score=batch.score, soft=self._typed(batch.soft),
            margin=self._typed(batch.margin), weight=batch.weight, unit_count=count,
            extra=self._extras(noisy, batch) | self._further(noisy, batch, x0),
        )  # fmt: skip

    def _typed(self, value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(self.dtype)

    def _of_term(
        self, rows: Denoised, term: Term, errors: dict[Space, Tensor], ref_errors: dict[Space, Tensor]
    ) -> Denoised:
        """The rows with the errors of a term's space."""
        ref_error = ref_errors[term.space] if term.objective.needs_reference else None
        return replace(rows, error=errors[term.space], ref_error=ref_error)

    def _reference(
        self, noisy: Corrupted, batch: Batch, units: list[int]
    ) -> tuple[dict[Space, Tensor], Tensor | None]:
        """(N,) reference errors by space, and the prediction unless an earlier run has kept all of them."""
        if not self.needs_reference:
            return {}, None
        keys = {space: ErrorCache.keys(batch.contents, units, repr(space)) for space in self._kept_spaces}
        whole = self._kept_errors(keys, batch.mean.device)
        if len(whole) == len(self.bound):
            return whole, None
        self.phase("reference")
        with self.policy.reference():
            ref_pred = self.predict(noisy.x_t, noisy.t, batch.cond, batch)
            errors = {space: self._error(space, ref_pred, noisy, batch) for space in self.bound}
        if self.kept is not None:
            for space, own in keys.items():
                self.kept.add(own, errors[space])
        return errors, ref_pred

    @property
    def _kept_spaces(self) -> Sequence[Space]:
        return () if self.kept is None else tuple(self.bound)

    def _kept_errors(self, keys: dict[Space, list[bytes]], device: torch.device) -> dict[Space, Tensor]:
        """(N,) errors of the spaces in which all rows were kept."""
        if self.kept is None:
            return {}
        found = {space: self.kept.lookup(own, device) for space, own in keys.items()}
        return {space: errors for space, errors in found.items() if errors is not None}

    def _open_kept(self) -> ErrorCache | None:
        """Reference errors of earlier runs whose every input was the same as this run's."""
        folder = self.config.data.reference_errors
        if folder is None or not self.needs_reference:
            return None
        settings = {
            "corruptor": repr(self.config.corruptor),
            "timesteps": repr(self.config.timesteps),
            "latents": self.config.data.latents,
        }
        return ErrorCache(folder, error_context(self.policy, settings), dtype=self.dtype)

    def flush(self) -> None:
        """Write the reference errors that are waiting."""
        if self.kept is not None:
            self.kept.flush()

    def _error(self, space: Space, pred: Tensor, noisy: Corrupted, batch: Batch) -> Tensor:
        """(N,) errors, in native space weighted by the regions that raters marked."""
        if batch.region is None:
            alone = person(batch.cond) is None  # then as it is: spaces know what they have seen
            cond = batch.cond if alone else without_people(batch.cond)
            return self.bound[space].error(pred, noisy, cond, batch.sizes)
        if not isinstance(space, Native):
            raise ValueError(
                "the data mark regions of pictures, which only the native space can weigh: take space native "
                "or data without regions"
            )
        return region_error(squared_error(pred, noisy.target), batch.region)

    def _extras(self, noisy: Corrupted, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "prompt_features" in self.needs:
            found["prompt_features"] = prompt_features(batch.cond)
        if "kl_error" in self.needs and batch.other_cond is not None:  # under another comparison's caption
            other = batch.other_cond
            space = self.terms[0].space
            with torch.no_grad():
                pred = self.predict(noisy.x_t, noisy.t, other, batch)
                found["kl_error"] = self.bound[space].error(pred, noisy, other, batch.sizes)
                with self.policy.reference():
                    pred = self.predict(noisy.x_t, noisy.t, other, batch)
                    found["kl_ref_error"] = self.bound[space].error(pred, noisy, other, batch.sizes)
        return found

    def _further(self, noisy: Corrupted, batch: Batch, x0: Tensor) -> dict[str, Tensor]:
        """Figures of passes beyond that of the batch itself; see ``train.extras``."""
        found: dict[str, Tensor] = {}
        process, reference = self.policy.process, self.policy.reference

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return self.predict(x, t, batch.cond, batch)

        if "rollout_distance" in self.needs:
            sample = self._asked(batch.cond, batch, "policy")
            found["rollout_distance"] = rollout_distance(sample, predict, reference, noisy, process)
        if "anchor_error" in self.needs:
            space, draws = next(
                (t.space, t.objective.draws) for t in self.terms if isinstance(t.objective, SePPO)
            )
            found["anchor_error"], found["anchor_ref_error"] = further_errors(
                lambda units: self.config.corruptor(
                    x0, units, process, self.config.timesteps, self._oracle(batch)
                ),
                lambda drawn: self._error(space, predict(drawn.x_t, drawn.t), drawn, batch),
                reference, noisy.units, draws,
            )  # fmt: skip
        return found

    def _of_others(self, noisy: Corrupted, batch: Batch, who: Conditions | None) -> dict[str, Tensor]:
        """Errors under another person's tokens, without gradient where they are only measured."""
        if who is None or who.other is None or self.people is None:
            return {}
        space = next(t.space for t in self.terms if "other_error" in t.objective.needs)
        with nullcontext() if self.people.contrasts else torch.no_grad():
            pred = self.predict(noisy.x_t, noisy.t, batch.cond | who.other, batch)
            error = self._error(space, pred, noisy, batch)
        return {"other_error": error, "other_disagrees": who.disagrees}

    # ------------------------------------------------------------------ inputs

    def _oracle(self, batch: Batch) -> Predict | None:
        """What the corruptor may ask: a prediction, without gradient, of the network that it names."""
        asks = self.config.corruptor.asks
        if asks is None:
            return None
        return self._asked(
            batch.cond if self.empty is None else self._unprompted(len(batch.group)), batch, asks
        )

    def _asked(self, cond: Cond, batch: Batch, asks: Network) -> Predict:
        """A network's prediction, without gradient and dropout."""
        network: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            "policy": nullcontext, "reference": self.policy.reference, "ema": self.averaged,
        }  # fmt: skip

        def predict(x: Tensor, t: Tensor) -> Tensor:
            with torch.no_grad(), evaluating(self.policy.denoiser), network[asks]():
                return self.predict(x, t, cond, batch)

        return predict

    def _unprompted(self, rows: int) -> Cond:
        collated = self.policy.collate_prompts([self.empty or {}] * rows)
        return {name: send(value, self.accelerator.device) for name, value in collated.items()}

    def _unit_seeds(self, batch: Batch) -> list[int]:
        """Seed of each row's comparison unit."""
        places = zip(batch.epoch.tolist(), batch.sample.tolist(), strict=True)
        return [draw_seed(self.config.seed, epoch, sample) for epoch, sample in places]

    def _latents(self, batch: Batch, units: list[int]) -> Tensor:
        """Unscaled (N, C, h, w) latents: the posterior's mean, or a sample seeded by unit and side."""
        if batch.logvar is None or self.config.data.latents == "mode":
            return batch.mean
        return batch.mean + (0.5 * batch.logvar.clamp(-30, 20)).exp() * seeded_noise(
            _row_seeds(units), batch.mean
        )

    def unit_weights(self, term: Term, batch: Batch) -> Tensor:
        """(U,) weights of a batch's units, on the device; the batch is on the host."""
        stand_in = Denoised(
            error=batch.weight, ref_error=None, group=batch.group, role=batch.role, t=batch.weight,
            unit_count=int(batch.group.max()) + 1,
        )  # fmt: skip
        weight = self.row_weights(term, batch.weight, batch.role)
        return send(term.objective.units(stand_in, weight).to(self.dtype), self.accelerator.device)

    def row_weights(self, term: Term, weight: Tensor, role: Tensor) -> Tensor:
        """(N,) weights of rows: where a term trains on winners in a batch of pairs, losers have none."""
        others = term.objective.data == "winners" and self.terms[0].objective.data != "winners"
        return weight * (role > 0) if others else weight


def prompt_features(cond: Cond) -> Tensor:
    """(N, D) pooled text of the rows in fp32, or the mean over their tokens where the model pools nothing."""
    pooled = cond.get("pooled")
    features = cond["text"].float().mean(1) if pooled is None else pooled.float()
    return features


def _row_seeds(units: Sequence[int]) -> list[int]:
    """Seed of each row's latent sample: of its unit and its side."""
    seen: dict[int, int] = {}
    seeds = []
    for unit in units:
        seen[unit] = seen.get(unit, -1) + 1
        seeds.append(draw_seed("latent", unit, seen[unit]))
    return seeds
