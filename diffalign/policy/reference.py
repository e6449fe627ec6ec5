"""References: whom the policy is compared with. One stands still, follows slowly, or is drawn from a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from diffalign.device import send
from diffalign.diffusion.corrupt import draw_seed
from diffalign.policy.family import Cond
from diffalign.policy.lora import (
    ADAPTER,
    START,
    AdapterConfig,
    adapter_parameters,
    add_frozen,
    copy_adapter,
    freeze_all_but,
)

if TYPE_CHECKING:
    from diffalign.policy.base import Policy

ReferenceKind = Literal["auto", "off", "start", "ema", "pool", "none"]
Call = Callable[[Tensor, Tensor, Cond, Tensor | None], Tensor]
"""(x_t, model time, conditioning, sizes) to the raw prediction of the network that answers now."""


@dataclass(frozen=True, kw_only=True)
class EmaReference:
    """A reference that follows the policy by a slow average."""

    name: Literal["ema"] = "ema"
    decay: float = 0.999
    """Share of itself that the reference keeps at each optimizer step."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"reference.decay is {self.decay}; it must be in [0, 1), for example 0.999")


@dataclass(frozen=True, kw_only=True)
class PoolReference:
    """Former checkpoints of this run, kept as LoRA weights (SePPO, arXiv:2410.05255; SPIN, arXiv:2402.10210).

    The policy as it started is the first member.
    """

    name: Literal["pool"] = "pool"
    every: int = 30
    """Optimizer steps between the checkpoints that join the pool."""
    size: int = 7
    """Newest checkpoints that are kept; each takes the memory of the LoRA, on the device of the policy."""
    draw: Literal["step", "unit", "latest"] = "step"
    """step: a random member for each batch; unit: for each comparison unit, with one reference pass per
    member drawn; latest: the newest member, so that each stretch of steps is compared with its own start.
    """

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.every < 1 or self.size < 1:
            raise ValueError(f"reference.every is {self.every} and size {self.size}; both must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LoraReference:
    """A LoRA of an earlier run: its strength is its own, its rank may be another than the policy's."""

    source: str
    """Folder or file of the LoRA."""
    name: Literal["lora"] = "lora"


ReferenceOptions = ReferenceKind | EmaReference | PoolReference | LoraReference
"""What a recipe says under policy.reference: a word, or a block with a name and options."""


class Reference:
    """One that stands still: some adapters of the trained network, or a network of its own."""

    moves = False
    """Whether it changes while the policy is trained."""

    def __init__(self, kind: str, adapters: Sequence[str] = (), network: nn.Module | None = None) -> None:
        """``adapters`` are active in the trained network while it answers, unless ``network`` does."""
        self.kind, self.adapters, self.network = kind, list(adapters), network

    def update(self) -> None:
        """Take note of an optimizer step of the policy."""

    def choose(self, step_seed: int, unit_seeds: Sequence[int]) -> None:
        """Settle who answers for the next batch, whose rows belong to units of these seeds."""

    def enter(self) -> None:
        """Get ready to answer."""

    def answer(self, call: Call, x_t: Tensor, time: Tensor, cond: Cond, sizes: Tensor | None) -> Tensor:
        """(B, C, h, w) raw prediction of the reference, of which ``call`` is the forward pass."""
        return call(x_t, time, cond, sizes)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to go on exactly; nothing for one that stands still."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint's tensors.

        Raises:
            ValueError: they belong to another kind of reference, or to another model.
        """
        _check_names(self.kind, set(state), set())


def make_reference(policy: Policy, options: ReferenceOptions) -> Reference:
    """Reference of a policy as it is now; ``options`` is not auto.

    Raises:
        ValueError: a kind that is made of a LoRA, for a policy without one.
        FileNotFoundError: there is no LoRA at the source.
    """
    kind = options if isinstance(options, str) else options.name
    frozen = policy.frozen_adapters
    if kind == "none":
        return Reference(kind)
    if policy.adapter is None:
        return _of_a_whole_network(policy, kind, options)
    if kind == "off":
        return Reference(kind, frozen)
    if isinstance(options, LoraReference):
        _load_twin(policy, options.source)
        return Reference(kind, [*frozen, START])
    _copy_twin(policy, policy.adapter)
    if kind == "ema":
        decay = options.decay if isinstance(options, EmaReference) else EmaReference().decay
        return Average(lora_weights(policy.denoiser), decay, [*frozen, START])
    if kind == "pool":
        chosen = options if isinstance(options, PoolReference) else PoolReference()
        return Pool(lora_weights(policy.denoiser), chosen, [*frozen, START])
    return Reference(kind, [*frozen, START])


def _of_a_whole_network(policy: Policy, kind: str, options: ReferenceOptions) -> Reference:
    if kind == "ema":
        twin = frozen_twin(policy.denoiser)
        trained, kept = (dict(m.named_parameters()) for m in (policy.denoiser, twin))
        decay = options.decay if isinstance(options, EmaReference) else EmaReference().decay
        return Average(Weights(trained=trained, kept=kept), decay, [], twin)
    if kind != "start":
        raise ValueError(
            f"reference {kind!r} needs a LoRA that can be switched off or kept in numbers; use 'start' or "
            "'ema' for full training"
        )
    return Reference(kind)  # the frozen copy that the policy keeps as its base, too


def _copy_twin(policy: Policy, config: AdapterConfig) -> None:
    """Put a frozen copy of the trained LoRA beside it."""
    _forget_twin(policy)
    copy_adapter(policy.denoiser, config, policy.family.lora_targets, START)
    freeze_all_but(policy.denoiser, ADAPTER)
    policy.activate()


def _load_twin(policy: Policy, source: str) -> None:
    """Load another LoRA as the frozen one: on the device, and with weights in the precision, of the first."""
    _forget_twin(policy)
    add_frozen(policy.pipeline, policy.denoiser, source, START)
    freeze_all_but(policy.denoiser, ADAPTER)
    policy.activate()


def _forget_twin(policy: Policy) -> None:
    if adapter_parameters(policy.denoiser, START):
        cast(Any, policy.denoiser).delete_adapters(START)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The same weights twice, by name: as they are trained, and as the reference has them."""

    trained: dict[str, nn.Parameter]
    kept: dict[str, nn.Parameter]


def lora_weights(denoiser: nn.Module) -> Weights:
    """Trained LoRA and its frozen twin in one network."""
    trained = adapter_parameters(denoiser, ADAPTER)
    twins = adapter_parameters(denoiser, START)
    return Weights(trained=trained, kept={n: twins[n.replace(f".{ADAPTER}.", f".{START}.")] for n in trained})


def frozen_twin(denoiser: nn.Module) -> nn.Module:
    """Copy of a whole network that never gets a gradient."""
    twin: nn.Module = deepcopy(denoiser).requires_grad_(False)
    return twin


class Average(Reference):
    """Follows the policy: kept <- decay kept + (1 - decay) trained, after each optimizer step."""

    moves = True

    def __init__(
        self, weights: Weights, decay: float, adapters: Sequence[str], network: nn.Module | None = None
    ) -> None:
        """Start at the weights that are kept now."""
        super().__init__("ema", adapters, network)
        self.weights, self.decay = weights, decay

    @torch.no_grad()
    def update(self) -> None:
        """See Reference."""
        kept: list[Tensor] = list(self.weights.kept.values())
        trained: list[Tensor] = list(self.weights.trained.values())
        torch._foreach_lerp_(kept, trained, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """The average, by the names of the trained weights."""
        return {f"average/{n}": p.detach() for n, p in self.weights.kept.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """See Reference."""
        _check_names(self.kind, set(state), set(self.state()))
        for name, parameter in self.weights.kept.items():
            parameter.copy_(state[f"average/{name}"])


class Pool(Reference):
    """Former checkpoints; the one that was drawn is put into the frozen adapter, so that no layer is added.

    Members and draws hang on the seeds and the number of updates alone: a resumed run draws the same.
    """

    moves = True

    def __init__(self, weights: Weights, options: PoolReference, adapters: Sequence[str]) -> None:
        """Start with the present weights as the only member."""
        super().__init__("pool", adapters)
        self.weights, self.options, self.steps = weights, options, 0
        self.members: list[dict[str, Tensor]] = []
        self.born: list[int] = []
        self._join()

    def update(self) -> None:
        """See Reference."""
        self.steps += 1
        if self.steps % self.options.every == 0:
            self._join()

    def _join(self) -> None:
        self.members.append({n: p.detach().clone() for n, p in self.weights.trained.items()})
        self.born.append(self.steps)
        self.members, self.born = self.members[-self.options.size :], self.born[-self.options.size :]
        self._rest()

    def _rest(self) -> None:
        """Until the next draw the newest member answers; what the adapter holds is not known any more."""
        self._choice: list[int] = [len(self.members) - 1]
        self._filled: int | None = None

    def choose(self, step_seed: int, unit_seeds: Sequence[int]) -> None:
        """See Reference."""
        count = len(self.members)
        if self.options.draw == "latest":
            self._choice = [count - 1]
        elif self.options.draw == "step":
            self._choice = [draw_seed("reference", step_seed) % count]
        else:
            self._choice = [draw_seed("reference", u) % count for u in unit_seeds]

    def enter(self) -> None:
        """See Reference; pictures are those of the first row's member."""
        self._fill(self._choice[0])

    def answer(self, call: Call, x_t: Tensor, time: Tensor, cond: Cond, sizes: Tensor | None) -> Tensor:
        """See Reference; rows of different members go through the network one member after another.

        Raises:
            ValueError: the members were drawn for a batch of another size.
        """
        drawn = sorted(set(self._choice))
        if len(drawn) == 1:
            return call(x_t, time, cond, sizes)
        if len(self._choice) != len(x_t):
            raise ValueError(
                f"the reference was drawn for {len(self._choice)} rows and is asked about {len(x_t)}: call "
                "policy.choose_reference with the units of this batch"
            )
        parts: list[Tensor] = []
        places: list[int] = []
        for member in drawn:
            rows = [i for i, choice in enumerate(self._choice) if choice == member]
            places += rows
            self._fill(member)
            parts.append(call(*_rows(rows, x_t, time, cond, sizes)))
        back = sorted(range(len(places)), key=places.__getitem__)
        return torch.cat(parts)[send(torch.tensor(back), x_t.device)]

    @torch.no_grad()
    def _fill(self, member: int) -> None:
        if member == self._filled:
            return
        kept, self._filled = self.weights.kept, member
        torch._foreach_copy_(list(kept.values()), [self.members[member][n] for n in kept])

    def state(self) -> dict[str, Tensor]:
        """All members, the update at which each joined, and the number of updates."""
        found = {f"member/{i}/{n}": v for i, m in enumerate(self.members) for n, v in m.items()}
        return found | {"born": torch.tensor(self.born), "steps": torch.tensor(self.steps)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See Reference; the pool keeps its newest members where ``size`` is smaller now."""
        count = len(state["born"]) if "born" in state else 0
        names = {f"member/{i}/{n}" for i in range(count) for n in self.weights.trained} | {"born", "steps"}
        _check_names(self.kind, set(state), names)
        like = next(iter(self.weights.trained.values()))
        keep = range(count)[-self.options.size :]
        self.members = [
            {n: state[f"member/{i}/{n}"].to(like.device, copy=True) for n in self.weights.trained}
            for i in keep
        ]
        self.born, self.steps = [int(state["born"][i]) for i in keep], int(state["steps"])
        self._rest()


def _rows(
    rows: list[int], x_t: Tensor, time: Tensor, cond: Cond, sizes: Tensor | None
) -> tuple[Tensor, Tensor, Cond, Tensor | None]:
    """Some rows of all inputs."""
    place = send(torch.tensor(rows), x_t.device)
    some = {name: value[place] for name, value in cond.items()}
    return x_t[place], time[place], some, None if sizes is None else sizes[place]


def _check_names(kind: str, saved: set[str], own: set[str]) -> None:
    odd = sorted(saved ^ own)
    if odd:
        raise ValueError(
            f"the state of the reference is of another kind or model than this run's ({kind}): {len(odd)} "
            f"tensors differ, first {odd[0]!r}; resume with the recipe of that run"
        )
