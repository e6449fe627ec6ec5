"""VQAScore: how sure a vision-language model is that the answer to "does this show ...?" is yes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scorers import catalogue
from scorers.base import check_batch
from scorers.hub import HubFiles
from scorers.load_options import LoadOptions, PictureOptions
from scorers.protocol import Details
from scorers.qwen import QwenPixels
from scorers.qwen_chat import END
from scorers.qwen_lm import QWEN_FILES, ChatScorer, QwenChat

Form = Literal["yes-no", "likelihood"]
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
YES = ("Yes", "yes", "YES", " Yes", " yes")
NO = ("No", "no", "NO", " No", " no")


@dataclass(frozen=True, kw_only=True)
class VQAScoreOptions(PictureOptions):
    """What may be chosen of a VQAScore."""

    form: Form = "yes-no"
    """The chance of yes against no, or the published likelihood of the answer."""


@catalogue.register("vqascore")
class VQAScore(ChatScorer):
    """Chance in (0, 1) that the model answers yes, from one look, without writing an answer.

    ``form="yes-no"``: sigmoid of s = logsumexp(logits of yes) - logsumexp(logits of no); s is ``raw`` and
    does not saturate. ``form="likelihood"``: the published exp(-mean cross-entropy) of the answer "Yes" and
    the end of the turn, a geometric mean.

    Args:
        chat: the model.
        form: see above.
    """

    name = "vqascore"
    dims = ("alignment",)
    range = (0.0, 1.0)
    licence = "Apache-2.0 (formula); that of the model you give"
    citation = (
        "Lin et al., Evaluating Text-to-Visual Generation with Image-to-Text Generation, 2024, "
        "arXiv:2404.01291"
    )
    weights = "folder of a Qwen2-VL or Qwen2.5-VL with its tokenizer, e.g. Qwen/Qwen2.5-VL-7B-Instruct"
    size = "2 to 72 B"
    hub = (HubFiles("Qwen/Qwen2.5-VL-7B-Instruct", QWEN_FILES),)
    option_type: ClassVar[type[LoadOptions]] = VQAScoreOptions
    chat: QwenChat
    preprocess: QwenPixels

    def __init__(self, chat: QwenChat, form: Form = "yes-no") -> None:
        """See the class.

        Raises:
            ValueError: unknown form, or the model has no single token for yes or no.
        """
        super().__init__(chat)
        if form not in ("yes-no", "likelihood"):
            raise ValueError(f"form must be 'yes-no' or 'likelihood', not {form!r}")
        self.form = form
        self.preprocess = chat.preprocess
        self.yes, self.no = (_single(chat, words) for words in (YES, NO))
        self.eval().requires_grad_(False)

    def take_options(self, options: LoadOptions) -> None:
        """See ScorerBase."""
        super().take_options(options)
        if isinstance(options, VQAScoreOptions):
            self.form = options.form

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32, differentiable in the pictures.

        Raises:
            ValueError: wrong shapes, not one prompt per picture, or a special token in a prompt.
        """
        return self.details(x01, prompts).score

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        """Scores, and as ``raw`` the logit of yes against no (or the mean log-likelihood)."""
        raw = self.log_odds(x01, prompts) if self.form == "yes-no" else self.log_likelihood(x01, prompts)
        return Details(score=raw.sigmoid() if self.form == "yes-no" else raw.exp(), raw=raw)

    def log_odds(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 logit of yes against no."""
        logits = self.chat.logits([x01], self._ask(x01, prompts))[:, -1]
        return logits[:, self.yes].logsumexp(1) - logits[:, self.no].logsumexp(1)

    def log_likelihood(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 mean log-likelihood of the tokens of the answer "Yes" and the end of the turn."""
        questions = self._ask(x01, prompts)
        ids = self.chat.tokenizer("Yes" + END, add_special_tokens=False)["input_ids"]
        logits = self.chat.logits([x01], questions, ["Yes" + END] * len(questions), last=len(ids) + 1)
        labels = torch.tensor(ids, device=logits.device).expand(len(questions), -1)
        return answer_log_likelihood(logits[:, :-1], labels)

    def _ask(self, x01: Tensor, prompts: Sequence[str]) -> list[str]:
        check_batch(x01, prompts)
        self.chat.check(prompts)
        self.chat.preprocess = self.preprocess  # with_preprocess may have chosen another
        return [QUESTION.format(prompt) for prompt in prompts]


def answer_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) mean log-likelihood of answer tokens; its exp is the published VQAScore (arXiv:2404.01291, eq. 1).

    Args:
        logits: (B, T, V), row t predicts label t.
        labels: (B, T) int64 token ids; negative ones are left out.
    """
    cost = F.cross_entropy(logits.transpose(1, 2), labels.clamp(min=0), reduction="none")  # (B, T)
    asked = labels >= 0
    return -(cost * asked).sum(1) / asked.sum(1)


def _single(chat: QwenChat, words: Sequence[str]) -> list[int]:
    ids = {chat.token(word) for word in words} - {None}
    if not ids:
        raise ValueError(f"none of {', '.join(map(repr, words))} is a single token of this model")
    return sorted(i for i in ids if i is not None)
