"""Decoupled attention written out, and random problems for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffalign.attention.decoupled import Implementation, add_user_attention, decoupled_attention

NAMES = ("q", "k_text", "v_text", "k_user", "v_user", "scale", "base")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of a random problem; text = 0 is the form that adds to a base."""

    batch: int = 2
    queries: int = 5
    heads: int = 1
    width: int = 16
    text: int = 7
    user: int = 4
    segments: int = 1
    text_group: int = 1
    user_group: int = 1
    lengths: tuple[int, ...] | None = None
    spread: float = 1.0
    seed: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors in fp64 on the CPU."""
        generator = torch.Generator().manual_seed(self.seed)

        def random(rows: int, tokens: int) -> Tensor:
            shape = (rows, tokens, self.heads, self.width)
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        text, user = self.batch // self.text_group, self.batch // self.user_group
        scale = torch.randn(self.batch, self.segments, generator=generator, dtype=torch.float64)
        return {
            "q": self.spread * random(self.batch, self.queries),
            "k_text": random(text, self.text),
            "v_text": random(text, self.text),
            "k_user": random(user, self.user),
            "v_user": random(user, self.user),
            "scale": scale,
            "base": random(self.batch, self.queries),
        }

    def length_tensor(self, device: str = "cpu") -> Tensor | None:
        """Text lengths, where there are any."""
        return None if self.lengths is None else torch.tensor(self.lengths, device=device)


def written_out(case: Case, x: dict[str, Tensor]) -> Tensor:
    """The formula, one sample and one segment at a time."""
    rows = []
    for b in range(case.batch):
        q = x["q"][b].transpose(0, 1)  # (H, N, D)
        out = x["base"][b].transpose(0, 1) if case.text == 0 else torch.zeros_like(q)
        valid = case.text if case.lengths is None else case.lengths[b]
        if valid:
            t = b // case.text_group
            out = out + _softmax_product(q, x["k_text"][t, :valid], x["v_text"][t, :valid])
        u, each = b // case.user_group, case.user // case.segments
        for i in range(case.segments):
            here = slice(i * each, (i + 1) * each)
            out = out + x["scale"][b, i] * _softmax_product(q, x["k_user"][u, here], x["v_user"][u, here])
        rows.append(out.transpose(0, 1))
    return torch.stack(rows)


def _softmax_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(H, N, D) from q (H, N, D) and k, v (L, H, D)."""
    s = torch.einsum("hnd,lhd->hnl", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hnl,lhd->hnd", s.softmax(-1), v)


def attend(case: Case, x: dict[str, Tensor], implementation: Implementation) -> Tensor:
    """The public function that fits the case."""
    user = (x["k_user"], x["v_user"], x["scale"])
    if case.text == 0:
        return add_user_attention(x["base"], x["q"], *user, implementation=implementation)
    lengths = case.length_tensor(str(x["q"].device))
    text = (x["k_text"], x["v_text"])
    return decoupled_attention(x["q"], *text, *user, lengths=lengths, implementation=implementation)


def outcome(
    case: Case, implementation: Implementation | None, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Tensor]:
    """Output and gradients in fp64 on the CPU; None is the formula in fp64, from inputs rounded to dtype."""
    of_scale = torch.promote_types(dtype, torch.float32)
    inputs = case.tensors().items()
    rounded = {name: value.to(of_scale if name == "scale" else dtype) for name, value in inputs}
    if implementation is None:
        x = {name: value.double().requires_grad_() for name, value in rounded.items()}
        out = written_out(case, x)
    else:
        x = {name: value.to(device).requires_grad_() for name, value in rounded.items()}
        out = attend(case, x, implementation)
    generator = torch.Generator().manual_seed(case.seed + 1)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
    out.backward(grad.to(out))
    found = {name: value.grad for name, value in x.items() if value.grad is not None}
    return {name: value.detach().cpu().double() for name, value in {"out": out, **found}.items()}


def largest_error(case: Case, found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Largest error of each tensor relative to its largest entry, or to its natural size where that is more:
    1; for gradients of queries the keys and for those of keys the queries, which multiply rounded gradients
    of scores (where a softmax is all or nothing, these gradients vanish and only the rounding is left).
    """
    x = case.tensors()
    q, k = x["q"].abs().max(), max(x[n].abs().max() for n in ("k_text", "k_user") if x[n].numel())
    size = {"q": k, "k_text": q, "k_user": q}
    return {
        name: ((found[name] - value).abs().max() / max(value.abs().max(), size.get(name, 1.0))).item()
        for name, value in truth.items()
        if value.numel()
    }
