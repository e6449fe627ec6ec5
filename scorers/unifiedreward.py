"""UnifiedReward: a vision-language model writes a mark, or which of two pictures is better."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import check_batch
from scorers.hub import HubFiles
from scorers.images import ImageLike
from scorers.load_options import LoadOptions
from scorers.protocol import Details, PairOutput
from scorers.qwen_chat import template
from scorers.qwen_lm import QWEN_FILES, Chat, ChatScorer, QwenChat
from scorers.unifiedreward_parse import (
    AXES,
    Parsed,
    parse_pair,
    parse_pair_axes,
    parse_point,
    parse_point_axes,
)

Questions = Literal["overall", "axes"]
MARKS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True, kw_only=True)
class UnifiedRewardOptions(LoadOptions):
    """What may be chosen of a UnifiedReward."""

    questions: Questions = "overall"
    """Version 1's one mark, or version 2.0's three."""
    soft: bool = False
    """Take the model's chances instead of its words (``"overall"`` only)."""


@catalogue.register("unifiedreward")
class UnifiedReward(ChatScorer):
    """Marks of 1 to 5 that a model writes, and comparisons in both orders; no gradient.

    A reply without a readable mark scores NaN and says so in ``status``; it never counts as 0. ``compare``
    asks in both orders, averages the two answers and reports where they agree: models prefer a place.

    Args:
        chat: the model, local or a client of a server.
        questions: ``"overall"``: version 1's questions, one mark; ``"axes"``: version 2.0's, one each for
            alignment, coherence and style, the score being their mean.
        soft: take the model's chances of the deciding word instead of the word itself (``"overall"`` only):
            the expected digit of the mark, and of "Image 1" against "Image 2".
        max_new_tokens: longest reply.
    """

    name = "unifiedreward"
    range = (1.0, 5.0)
    differentiable = False
    licence = "code and questions MIT; the weights' licence stands with them"
    citation = (
        "Wang et al., Unified Reward Model for Multimodal Understanding and Generation, 2025, "
        "arXiv:2503.05236"
    )
    weights = "folder of CodeGoat24/UnifiedReward-qwen-7b (or 2.0-qwen-7b) with its tokenizer"
    size = "8.3 B"
    hub = (HubFiles("CodeGoat24/UnifiedReward-qwen-7b", QWEN_FILES),)
    option_type: ClassVar[type[LoadOptions]] = UnifiedRewardOptions

    def __init__(
        self, chat: Chat, questions: Questions = "overall", *, soft: bool = False, max_new_tokens: int = 512
    ) -> None:
        """See the class.

        Raises:
            ValueError: unknown questions, or ``soft`` with ``"axes"``.
        """
        super().__init__(chat)
        self._choose(questions, soft)
        self.max_new_tokens = max_new_tokens
        if isinstance(chat, nn.Module):
            self.eval().requires_grad_(False)

    def take_options(self, options: LoadOptions) -> None:
        """See ScorerBase."""
        super().take_options(options)
        if isinstance(options, UnifiedRewardOptions):
            self._choose(options.questions, options.soft)

    def _choose(self, questions: Questions, soft: bool) -> None:
        """Choose what is asked and how the answer is read."""
        if questions not in ("overall", "axes"):
            raise ValueError(f"questions must be 'overall' or 'axes', not {questions!r}")
        if soft and questions == "axes":
            raise ValueError("soft needs questions='overall': the axes' numbers are written digit by digit")
        self.questions, self.soft = questions, soft
        self.dims = ("overall",) if questions == "overall" else ("overall", *AXES)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32, NaN where no mark can be read.

        Raises:
            ValueError: wrong shapes, not one prompt per picture, or a special token in a prompt.
        """
        return self.details(x01, prompts).score

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        """Scores, marks per axis, and a status for each reply."""
        check_batch(x01, prompts)
        overall = self.questions == "overall"
        asked = self._ask("unifiedreward_point" if overall else "unifiedreward_point_axes", prompts)
        replies = self.chat.replies([x01], asked, max_new_tokens=self.max_new_tokens)
        parsed = [(parse_point if overall else parse_point_axes)(reply) for reply in replies]
        values = torch.tensor([p.values for p in parsed], device=x01.device)  # (B, 1 or 3)
        score = self._expected([x01], asked, replies, parsed, values) if self.soft else values.mean(1)
        dims = dict(zip(self.dims, (score, *values.unbind(1)), strict=not overall))
        return Details(score=score, dims={} if overall else dims, status=[p.status for p in parsed])

    def score_dims(self, x01: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """See ScorerBase."""
        found = self.details(x01, prompts)
        return dict(found.dims) or {self.dims[0]: found.score}

    def compare(
        self,
        a: ImageLike | Sequence[ImageLike],
        b: ImageLike | Sequence[ImageLike],
        prompts: str | Sequence[str] | None = None,
        *,
        chunk: int = 32,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> PairOutput:
        """Compare n pictures with n others, each pair in both orders.

        Returns:
            ``prob`` is the mean of both orders' answers (1, 0.5 or 0 each unless ``soft`` or by axes) and
            ``logit`` its logit, infinite where both are sure; NaN where a reply cannot be read.
            ``tie_prob`` is the share of the orders that called a tie.

        Raises:
            ValueError: not as many pictures on both sides, or see ``__call__``.
        """
        first, second, texts = self.paired(a, b, prompts, value_range)
        answers, status = torch.empty(2, len(first)), ["ok"] * len(first)
        with torch.no_grad():
            for rows in _stacks(first, second, chunk):
                x, y = (torch.stack([side[i] for i in rows]) for side in (first, second))
                asked = [texts[i] for i in rows]
                for order, shown in enumerate(([x, y], [y, x])):
                    found, said = self._judge(shown, asked)
                    answers[order, rows] = found if order == 0 else 1 - found
                    for i, word in zip(rows, said, strict=True):
                        status[i] = status[i] if word == "ok" else word
        return self._summary(answers, status)

    def _summary(self, answers: Tensor, status: Sequence[str]) -> PairOutput:
        """From (2, B) chances that a is preferred, by order."""
        prob = answers.mean(0)
        verdict = (answers - 0.5).sign()
        known = ~prob.isnan()
        return PairOutput(
            logit=prob.logit(),
            prob=prob,
            tie_prob=torch.where(known, (verdict == 0).float().mean(0), torch.nan),
            order_agreement=torch.where(known, (verdict[0] == verdict[1]).float(), torch.nan),
            status=tuple(status),
            meta=self.describe(),
        )

    def _judge(self, shown: list[Tensor], prompts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """(B,) chance that the first shown is preferred, and B statuses."""
        overall = self.questions == "overall"
        asked = self._ask("unifiedreward_pair" if overall else "unifiedreward_pair_axes", prompts)
        replies = self.chat.replies(shown, asked, max_new_tokens=self.max_new_tokens)
        parsed = [(parse_pair if overall else parse_pair_axes)(reply) for reply in replies]
        prob = torch.tensor([p.values for p in parsed]).mean(1)
        if self.soft:
            prob = self._chances(shown, asked, replies, parsed, prob)
        return prob, [p.status for p in parsed]

    def _ask(self, name: str, prompts: Sequence[str]) -> list[str]:
        if isinstance(self.chat, QwenChat):
            self.chat.check(prompts)
        return [template(name).replace("{prompt}", prompt) for prompt in prompts]

    def _expected(
        self, shown: list[Tensor], asked: list[str], replies: list[str], parsed: list[Parsed], values: Tensor
    ) -> Tensor:
        """(B,) sum of digit * chance of the digit, where the mark begins; NaN where there is none."""
        logits = self._choices(shown, asked, replies, parsed, MARKS).to(values.device)
        expected = (logits.softmax(1) * torch.arange(1.0, 6.0, device=values.device)).sum(1)
        return torch.where(values[:, 0].isnan(), values[:, 0], expected)

    def _chances(
        self, shown: list[Tensor], asked: list[str], replies: list[str], parsed: list[Parsed], hard: Tensor
    ) -> Tensor:
        """(B,) chance of "1" against "2" where the verdict names a picture; others stay as they are."""
        logits = self._choices(shown, asked, replies, parsed, ("1", "2")).cpu()
        named = torch.tensor([p.at >= 0 for p in parsed])
        return torch.where(named, (logits[:, 0] - logits[:, 1]).sigmoid(), hard)

    def _choices(
        self,
        shown: list[Tensor],
        asked: list[str],
        replies: list[str],
        parsed: list[Parsed],
        words: Sequence[str],
    ) -> Tensor:
        """(B, W) logits of the words at each reply's deciding place (the beginning where there is none)."""
        begun = [reply[: max(p.at, 0)] for reply, p in zip(replies, parsed, strict=True)]
        return self.chat.next_logits(shown, asked, begun, words)


def _stacks(first: Sequence[Tensor], second: Sequence[Tensor], chunk: int) -> list[list[int]]:
    """Numbers of pairs whose pictures have the same two sizes, at most ``chunk`` at once."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    sizes: dict[tuple[torch.Size, torch.Size], list[int]] = defaultdict(list)
    for i, (x, y) in enumerate(zip(first, second, strict=True)):
        sizes[(x.shape, y.shape)].append(i)
    return [rows[i : i + chunk] for rows in sizes.values() for i in range(0, len(rows), chunk)]
