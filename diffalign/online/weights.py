"""Sets of parameters beside the trained one: who made the pictures, and whom the policy is measured from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from diffalign.objectives.blend import Blend
from diffalign.online.blocks import WeightsConfig, course
from diffalign.train.ema import Ema
from diffalign.train.shard import like

Copies = dict[str, Tensor]


class ParameterSets:
    """Copies of the trained parameters, LoRA or all weights alike, that follow them in their own ways.

    A copy is replaced and never written into, so that sets of the same weights share their memory.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: WeightsConfig,
        *,
        remember: bool = True,
        anchored: bool = True,
    ) -> None:
        """Start all at the present weights.

        Args:
            parameters: trained ones, by name.
            config: see WeightsConfig.
            remember: keep ``previous``, the weights that the iteration before began with.
            anchored: keep the running average.
        """
        self.parameters, self.config, self.remember = dict(parameters), config, remember
        self.began = self.previous = self.old = self.sampling = self._copy()
        self.anchor = Ema(self.parameters, config.anchor) if anchored else None

    def of_sampling(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that make pictures."""
        if self.config.sampling == "policy":
            return nullcontext()
        return self.holding(self.behaviour)

    def of_behaviour(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that made the pictures, wherever it is by now."""
        return self.holding(self.behaviour)

    @property
    def behaviour(self) -> Copies:
        """Weights that make the pictures of the iteration."""
        if self.config.sampling == "policy":
            return self.began
        return self.old if self.config.sampling == "old" else self.sampling

    def of_old(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that it is measured from."""
        return self.holding(self.old)

    def of_anchor(self) -> AbstractContextManager[None]:
        """Inside, the policy has its running average.

        Raises:
            RuntimeError: none is kept.
        """
        if self.anchor is None:
            raise RuntimeError("these parameter sets keep no running average: make them with anchored=True")
        return self.anchor.swapped()

    @contextmanager
    def holding(self, values: Copies) -> Iterator[None]:
        """Inside, the policy has these weights."""
        kept = self._copy()
        self._fill(values)
        try:
            yield
        finally:
            self._fill(kept)

    def begin(self) -> None:
        """An iteration begins: what is copied at each is copied now."""
        before, self.began = self.began, self._copy()
        self.previous = before if self.remember else self.began
        if self.config.old == "copy":
            self.old = self.began
        if not self._samples_by_course:
            self.sampling = self.began

    @torch.no_grad()
    def end(self, iteration: int) -> None:
        """An iteration has ended: sets that follow by a course take in the new weights."""
        if self.config.old != "copy":
            self.old = self._blend(self.old, course(self.config.old), iteration)
        if self._samples_by_course:
            self.sampling = self._blend(self.sampling, course(self.config.sampling), iteration)

    def updated(self) -> None:
        """The optimizer has made a step."""
        if self.anchor is not None:
            self.anchor.update()

    def state(self) -> dict[str, Tensor]:
        """Tensors for the checkpoint: of the sets that ``begin`` does not make anew."""
        kept = {"began": self.remember, "old": self.config.old != "copy", "sampling": self._samples_by_course}
        sets = {"began": self.began, "old": self.old, "sampling": self.sampling}
        found = {f"{name}/{k}": v for name, own in sets.items() if kept[name] for k, v in own.items()}
        if self.anchor is not None:
            found |= {f"anchor/{k}": v for k, v in self.anchor.state().items()}
            found["anchor_steps"] = torch.tensor(self.anchor.steps)
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint's tensors."""

        def part(name: str, own: Copies) -> Copies:
            whole = {k: state.get(f"{name}/{k}") for k in self.parameters}
            return {k: own[k] if v is None else like(v, self.parameters[k]) for k, v in whole.items()}

        now = self._copy()
        self.began, self.old, self.sampling = (part(n, now) for n in ("began", "old", "sampling"))
        if self.anchor is not None:
            self.anchor.load({k: state[f"anchor/{k}"] for k in self.parameters}, int(state["anchor_steps"]))

    @property
    def _samples_by_course(self) -> bool:
        """Whether pictures are made by weights of their own."""
        return self.config.sampling not in ("policy", "old")

    def _blend(self, own: Copies, course: Blend, iteration: int) -> Copies:
        share = 1 - course.decay(iteration)
        return {name: value.lerp(self.parameters[name].detach(), share) for name, value in own.items()}

    def _copy(self) -> Copies:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _fill(self, values: Copies) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
