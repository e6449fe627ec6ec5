"""The online loop: pictures, rewards, updates, for every online objective and model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffalign.diffusion.corrupt import draw_seed
from diffalign.objectives.base import Denoised
from diffalign.objectives.forward_process import mean_square
from diffalign.objectives.steps import Steps
from diffalign.objectives.value import LearnedValue
from diffalign.online.collect import Collector, Harvest
from diffalign.online.config import OnlineConfig
from diffalign.online.groups import Groups
from diffalign.online.noised import NoisedPass, noised_table
from diffalign.online.pairs import pair_table
from diffalign.online.rewards import RewardLog
from diffalign.online.steps import StepPass, step_table
from diffalign.online.tables import NoisedTable, StepTable, Table, balanced, finite, shared_out
from diffalign.online.value import ValueBaseline
from diffalign.online.watch import Watch
from diffalign.online.weights import ParameterSets
from diffalign.policy import Policy
from diffalign.policy.modes import evaluating
from diffalign.train.core import Core
from diffalign.train.metrics import StepFigures
from diffalign.train.optim import learning_rate, set_learning_rate
from diffalign.train.run import RunFolder

log = logging.getLogger(__name__)


class OnlineTrainer(Core):
    """Runs iterations of one online objective on one policy."""

    must_agree = (
        "objective",
        "rollout",
        "groups",
        "rewards",
        "advantage",
        "combination",
        "judge",
        "pairing",
        "noise",
        "weights",
        "compare_with",
        "policy.adapter",
        "policy.reference",
        "optim.name",
    )

    def __init__(
        self, config: OnlineConfig, policy: Policy, groups: Groups, accelerator: Accelerator, run: RunFolder
    ) -> None:
        """Load the scorers and prepare the parameter sets; see OnlineConfig for the options.

        Raises:
            ValueError: a scorer cannot be used as the recipe says.
        """
        super().__init__(config, policy, accelerator, run)
        self.config: OnlineConfig = config
        self.objective = config.objective
        self.sets = ParameterSets(
            self.parameters, config.weights,
            remember=config.compare_with == "previous", anchored="ema_pred" in config.objective.needs,
        )  # fmt: skip
        self.watch = Watch(stop=config.stop)
        rewards = RewardLog(run.root / "rewards", accelerator.process_index)
        self.collect = Collector(config, policy, groups, accelerator, rewards)
        self.baseline = self._baseline()
        self.on_steps = StepPass(config, policy, self.reference)
        self.on_noised = NoisedPass(config, policy, self.reference)

    # ------------------------------------------------------------------ an iteration

    def _advance(self) -> tuple[dict[str, Tensor], list[int]]:
        self.sets.begin()
        harvest = self.collect(self.step, self.sets, self.state)
        figures, norms, rows = StepFigures(), list[Tensor](), 0
        with evaluating(self.policy.denoiser):  # without dropout, or ratios would compare two networks
            table, foretold = self._rows(harvest)
            for k in range(self.config.update.passes if len(table) else 0):
                options, seed = self.config.update, draw_seed("update", self.config.seed, self.step, k)
                self.policy.opponent.choose(draw_seed("step", self.config.seed, self.step), ())
                for parts in shared_out(table, options.updates, options.micro_batch, seed):
                    norms.append(self._update(parts, harvest, figures))
            rows = len(table)
            drift = self._drift(table, harvest) if rows else None
        self.sets.end(self.step)
        if not rows:
            log.warning("step %d: no rows to train on; nothing was learnt", self.step + 1)
        out = figures.means(self._reduce_sum) if rows else {}
        out |= {} if drift is None else {"drift": self._reduce_mean(drift)}
        plain = harvest.figures | self._counted(harvest, rows)
        plain["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if norms:
            out["grad_norm"] = torch.stack(norms).max()
        self.watch.iteration(self.step + 1, plain | {k: float(v) for k, v in out.items()})
        return out | foretold | self._scalars(plain), [p.number for p in harvest.planned]

    def _baseline(self) -> ValueBaseline | None:
        """The network whose values are taken off rewards, where the recipe has one."""
        rule = self.config.advantage
        if not isinstance(rule, LearnedValue):
            return None
        return ValueBaseline(rule, self.policy, self.collect.side, self.config.seed, self.accelerator)

    def _rows(self, harvest: Harvest) -> tuple[Table, dict[str, Tensor]]:
        """The rows to train on, less the learned baseline where there is one, and its figures."""
        table = finite(self._table(harvest))
        if self.baseline is None:
            return table, {}
        assert isinstance(table, StepTable)
        return self.baseline(table, harvest, self.step)

    def _table(self, harvest: Harvest) -> Table:
        """The rows of this process; as many units as the others have."""
        kind = self.objective.batch
        if kind == "rollouts":
            return noised_table(harvest, self.config)
        if kind == "pairs":
            return balanced(pair_table(harvest, self.config), self.accelerator)
        table = step_table(harvest, self.config)
        return balanced(table, self.accelerator) if self.objective.unit == "pair" else table

    def _update(self, parts: Sequence[Table], harvest: Harvest, figures: StepFigures) -> Tensor:
        """One optimizer step: sum(weight * loss) / sum(weight) over parts and processes; its norm."""
        total = self._reduce_sum(torch.stack([self._weights(self._frame(p)).sum() for p in parts]).sum())
        if not bool(total > 0):  # nothing to learn from; a step would follow the optimizer's momentum alone
            return total.new_zeros(())
        for i, part in enumerate(parts):
            last = i == len(parts) - 1 or self.shards is not None
            with nullcontext() if last else self.accelerator.no_sync(self.policy.wrapped):
                self._backward(part, harvest, total, figures)
        norm = self._clip()
        set_learning_rate(self.optimizer, learning_rate(self.step, self.config.steps, self.config.optim))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.opponent.update()
        self.sets.updated()
        if self.ema is not None:
            self.ema.update()
        return norm

    def _backward(self, part: Table, harvest: Harvest, total: Tensor, figures: StepFigures) -> None:
        with self.accelerator.autocast():
            batch = self._batch(part, harvest)
        loss, metrics = self.objective.loss(batch, self._reduce_mean, self.state)  # (U,)
        weight = self._weights(batch).to(loss.dtype)
        figures.add("loss", loss, weight > 0)
        figures.add_all(metrics, self._time_shares(batch, weight), weight > 0)
        share = (weight * loss).sum() / total.clamp_min(1e-12)
        # DDP averages gradients over processes, hence the factor
        self.accelerator.backward(share * self.accelerator.num_processes)

    def _batch(self, part: Table, harvest: Harvest) -> Steps | Denoised:
        if isinstance(part, StepTable):
            return self.on_steps(part, harvest, self.sets)
        assert isinstance(part, NoisedTable)
        return self.on_noised(part, harvest, self.sets)

    def _frame(self, part: Table) -> Steps | Denoised:
        """The batch without anything that the network must be asked for."""
        if isinstance(part, StepTable):
            return self.on_steps.frame(part)
        assert isinstance(part, NoisedTable)
        return self.on_noised.frame(part)

    def _time_shares(self, batch: Steps | Denoised, like: Tensor) -> Tensor:
        """(U,) places of the units in time, 0 to 1; steps have figures of all times together."""
        if isinstance(batch, Steps):
            return torch.zeros_like(like)
        process = self.policy.process
        share = batch.t if process.is_flow else batch.t / process.steps
        return self.objective.units(batch, share.to(like.dtype))

    def _weights(self, batch: Steps | Denoised) -> Tensor:
        """(U,) weights of the units of a batch."""
        assert batch.weight is not None
        return self.objective.units(batch, batch.weight)

    # ------------------------------------------------------------------ figures

    def _drift(self, table: Table, harvest: Harvest) -> Tensor | None:
        """Scalar <(pred - pred_start)^2> on the first rows of the table, without guidance."""
        if self.policy.opponent.kind == "none":
            return None
        part = table.take(torch.arange(min(len(table), self.config.update.micro_batch)))
        with torch.no_grad(), self.accelerator.autocast():
            own = self._plain(part, harvest)
            with self.policy.reference():
                return mean_square(own - self._plain(part, harvest)).mean()

    def _plain(self, part: Table, harvest: Harvest) -> Tensor:
        if isinstance(part, StepTable):
            return self.on_steps.plain(part, harvest)
        assert isinstance(part, NoisedTable)
        return self.on_noised.plain(part, harvest)

    def _counted(self, harvest: Harvest, rows: int) -> dict[str, float]:
        """Rows that were trained on, and how far apart the pictures of a prompt are, over all processes."""
        told: list[tuple[int, int, float]] = gather_object([(rows, len(harvest.planned), diversity(harvest))])
        all_rows, pictures, apart = (sum(column) for column in zip(*told, strict=True))
        return {"rows": all_rows, "pictures": pictures, "diversity": apart / len(told)}

    def _scalars(self, values: Mapping[str, float]) -> dict[str, Tensor]:
        device = self.accelerator.device
        return {k: torch.full((), float(v), device=device) for k, v in values.items()}

    # ------------------------------------------------------------------ weights and state

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the policy is what it is held to, without gradient."""
        if self.config.compare_with == "start":
            return self.policy.reference()
        behaviour = self.config.compare_with == "behaviour"
        return _frozen(self.sets.holding(self.sets.behaviour if behaviour else self.sets.previous))

    def position(self) -> dict[str, Any]:
        """See Core."""
        return {"iteration": self.step, "watch": self.watch.state_dict()}

    def go_to(self, position: Mapping[str, Any]) -> None:
        """See Core."""
        self.watch.load_state_dict(position["watch"])

    def further_state(self) -> dict[str, Tensor]:
        """See Core."""
        own = {} if self.baseline is None else self.baseline.state()
        return self.sets.state() | {f"value/{k}": v for k, v in own.items()}

    def load_further(self, state: Mapping[str, Tensor]) -> None:
        """See Core."""
        self.sets.load(state)
        if self.baseline is not None:
            own = {k.removeprefix("value/"): v for k, v in state.items() if k.startswith("value/")}
            self.baseline.load(own)


@contextmanager
def _frozen(weights: AbstractContextManager[None]) -> Iterator[None]:
    with torch.no_grad(), weights:
        yield


def diversity(harvest: Harvest) -> float:
    """Mean root-mean-square distance between the latents of two pictures of a prompt."""
    x0, found = harvest.run.x0.float().flatten(1), []
    for group in harvest.prompt.unique():
        own = x0[(harvest.prompt == group).to(x0.device)]
        if len(own) > 1:
            found.append(torch.pdist(own.cpu()).mean() / own.shape[1] ** 0.5)
    return float(torch.stack(found).mean()) if found else float("nan")
