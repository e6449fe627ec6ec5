"""Sets of parameters beside the trained one: who made the pictures, and whom the policy is measured from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from diffalign.objectives.blend import Blend
from diffalign.online.config import WeightsConfig, course
from diffalign.train.ema import Ema

Copies = dict[str, Tensor]


class ParameterSets:
    """Copies of the trained parameters, LoRA or all weights alike, that follow them in their own ways."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: WeightsConfig) -> None:
        """Start all at the present weights."""
        self.parameters, self.config = dict(parameters), config
        self.old, self.previous, self.sampling = (self._copy() for _ in range(3))
        self.anchor = Ema(self.parameters, config.anchor)

    def of_sampling(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that make pictures."""
        if self.config.sampling == "policy":
            return nullcontext()
        return self.holding(self.old if self.config.sampling == "old" else self.sampling)

    def of_old(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that it is measured from."""
        return self.holding(self.old)

    def of_anchor(self) -> AbstractContextManager[None]:
        """Inside, the policy has its running average."""
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
        self.previous = self.old
        if self.config.old == "copy":
            self.old = self._copy()

    @torch.no_grad()
    def end(self, iteration: int) -> None:
        """An iteration has ended: sets that follow by a course take in the new weights."""
        if self.config.old != "copy":
            self.old = self._blend(self.old, course(self.config.old), iteration)
        if self.config.sampling not in ("policy", "old"):
            self.sampling = self._blend(self.sampling, course(self.config.sampling), iteration)

    def updated(self) -> None:
        """The optimizer has made a step."""
        self.anchor.update()

    def state(self) -> dict[str, Tensor]:
        """Tensors for the checkpoint."""
        sets = {"old": self.old, "previous": self.previous, "sampling": self.sampling}
        found = {f"{name}/{k}": v for name, own in sets.items() for k, v in own.items()}
        steps = torch.tensor(self.anchor.steps)
        return found | {f"anchor/{k}": v for k, v in self.anchor.state().items()} | {"anchor_steps": steps}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint's tensors."""

        def part(name: str) -> Copies:
            return {k: state[f"{name}/{k}"].to(p.device).clone() for k, p in self.parameters.items()}

        self.old, self.previous, self.sampling = (part(n) for n in ("old", "previous", "sampling"))
        self.anchor.load(part("anchor"), int(state["anchor_steps"]))

    def _blend(self, own: Copies, course: Blend, iteration: int) -> Copies:
        share = 1 - course.decay(iteration)
        return {name: value.lerp(self.parameters[name].detach(), share) for name, value in own.items()}

    def _copy(self) -> Copies:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _fill(self, values: Copies) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
