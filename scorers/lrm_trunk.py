"""What a denoiser sees in noisy latents: the features of its first half."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scorers.lrm_text import Form, Texts

Process = Literal["vp", "flow"]
SDXL_TIME_IDS = (1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0)
"""Original size, crop and target size that LRM-XL is always told."""


class Trunk(nn.Module, ABC):
    """First half of a denoiser. ``taps`` says where it is read, ``widths`` how many channels are there.

    Args:
        net: the network without what is not needed.
        taps: where it is read.
        widths: channels of each map, the deepest last.
    """

    process: Process
    """Whose noise it knows: variance preserving, or rectified flow."""

    def __init__(self, net: nn.Module, taps: Sequence[int], widths: Sequence[int]) -> None:
        """See the class."""
        super().__init__()
        self.net: Any = net
        self.taps, self.widths = tuple(taps), tuple(widths)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.net.config.in_channels)

    @abstractmethod
    def maps(self, latents: Tensor, times: Tensor, texts: Texts) -> list[Tensor]:
        """Maps (B, N_i, W_i) in the trunk's precision, the deepest last, of (B, C, h, w) latents.

        Args:
            latents: noisy latents.
            times: (B,) as the denoiser takes them.
            texts: the prompts.
        """


class UNetTrunk(Trunk):
    """A UNet2DConditionModel without its up path: residuals of the down path and the middle block.

    Tap i is the i-th of the residuals that the up path would get, 0 that of ``conv_in``.
    """

    process: Process = "vp"

    def __init__(self, net: Any, taps: Sequence[int] = ()) -> None:
        """``net`` loses its up path; no ``taps`` are LPO's, the last residual of every stage.

        Raises:
            ValueError: a tap that there is not.
        """
        channels = _residual_channels(net)
        taps = tuple(taps) or self.usual_taps(net)
        _check_taps(taps, range(len(channels)), "residuals of the down path")
        super().__init__(net, taps, [*(channels[i] for i in taps), net.config.block_out_channels[-1]])
        net.up_blocks = nn.ModuleList()
        net.conv_norm_out, net.conv_out = None, nn.Identity()

    @staticmethod
    def usual_taps(net: Any) -> tuple[int, ...]:
        """See ``stage_taps``."""
        return stage_taps(net)

    def maps(self, latents: Tensor, times: Tensor, texts: Texts) -> list[Tensor]:
        """See Trunk."""
        net = self.net
        x = latents.to(net.dtype)
        x = 2 * x - 1 if net.config.center_input_sample else x
        added, tokens = self._added(texts), texts.tokens.to(net.dtype)
        time = net.time_embedding(net.get_time_embed(sample=x, timestep=times))
        more = net.get_aug_embed(emb=time, encoder_hidden_states=tokens, added_cond_kwargs=added)
        time = time if more is None else time + more
        tokens = net.process_encoder_hidden_states(encoder_hidden_states=tokens, added_cond_kwargs=added)
        x = net.conv_in(x)
        residuals = [x]
        for block in net.down_blocks:
            x, found = _run(block, x, time, tokens)
            residuals += found
        middle = _run(net.mid_block, x, time, tokens)
        return [m.flatten(2).transpose(1, 2) for m in (*(residuals[i] for i in self.taps), middle)]

    def _added(self, texts: Texts) -> dict[str, Tensor]:
        """SDXL's further conditions."""
        if self.net.config.addition_embed_type != "text_time":
            return {}
        pooled = texts.pooled.to(self.net.dtype)
        sizes = pooled.new_tensor(SDXL_TIME_IDS).expand(len(pooled), -1)
        return {"text_embeds": pooled, "time_ids": sizes}


class MMDiTTrunk(Trunk):
    """First blocks of an SD3Transformer2DModel; tap k is the image stream after block k, from 1."""

    process: Process = "flow"

    def __init__(self, net: Any, taps: Sequence[int] = ()) -> None:
        """``net`` loses the blocks after the last tap; no ``taps`` are one at three quarters of the depth.

        Of the 24 blocks of Stable Diffusion 3 that is block 18, which LPO reads.

        Raises:
            ValueError: a tap that there is not, or taps out of order.
        """
        taps = tuple(taps) or self.usual_taps(net)
        _check_taps(taps, range(1, len(net.transformer_blocks) + 1), "blocks")
        super().__init__(net, taps, [int(net.inner_dim)] * len(taps))
        net.transformer_blocks = net.transformer_blocks[: taps[-1]]
        net.norm_out, net.proj_out = nn.Identity(), nn.Identity()

    @staticmethod
    def usual_taps(net: Any) -> tuple[int, ...]:
        """Three quarters of the depth."""
        return (max(1, round(0.75 * len(net.transformer_blocks))),)

    def maps(self, latents: Tensor, times: Tensor, texts: Texts) -> list[Tensor]:
        """See Trunk."""
        net = self.net
        x = net.pos_embed(latents.to(net.dtype)).contiguous()
        time = net.time_text_embed(times, texts.pooled.to(net.dtype))
        tokens = net.context_embedder(texts.tokens.to(net.dtype))
        found = []
        for number, block in enumerate(net.transformer_blocks, 1):
            tokens, x = block(hidden_states=x, encoder_hidden_states=tokens, temb=time)
            found += [x] if number in self.taps else []
        return found


def stage_taps(unet: Any) -> tuple[int, ...]:
    """Last residual of every down stage, before its downsampler.

    That is (2, 5, 8, 11) of Stable Diffusion 1.5 and (2, 5, 8) of SDXL, as LPO has it.
    """
    taps, last = [], 0
    for block in unet.down_blocks:
        taps.append(last + len(block.resnets))
        last = taps[-1] + len(block.downsamplers or ())
    return tuple(taps)


def trunk_of(denoiser: Any) -> tuple[type[UNetTrunk] | type[MMDiTTrunk], bool]:
    """Kind of trunk that a denoiser makes, and whether it is SDXL's.

    Raises:
        TypeError: neither UNet2DConditionModel nor SD3Transformer2DModel.
    """
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    if isinstance(denoiser, UNet2DConditionModel):
        return UNetTrunk, denoiser.config["addition_embed_type"] == "text_time"
    if isinstance(denoiser, SD3Transformer2DModel):
        return MMDiTTrunk, False
    raise TypeError(
        f"a {type(denoiser).__name__} makes no latent reward model; it takes a UNet2DConditionModel or an "
        "SD3Transformer2DModel"
    )


def form_of(kind: type[Trunk], is_sdxl: bool) -> Form:
    """How the text encoders of such a denoiser are put together."""
    if kind is MMDiTTrunk:
        return "sd3"
    return "sdxl" if is_sdxl else "sd"


def unused_keys(kind: type[Trunk], taps: Sequence[int], depth: int) -> tuple[str, ...]:
    """Patterns of the weights of a whole denoiser that its trunk does without.

    Args:
        kind: of the trunk.
        taps: of the trunk.
        depth: blocks of a transformer.
    """
    if kind is UNetTrunk:
        return ("net.up_blocks.*", "net.conv_norm_out.*", "net.conv_out.*")
    blocks = (f"net.transformer_blocks.{i}.*" for i in range(taps[-1], depth))
    return ("net.norm_out.*", "net.proj_out.*", *blocks)


def _residual_channels(unet: Any) -> list[int]:
    """Channels of every residual of the down path."""
    out = unet.config.block_out_channels
    found = [int(out[0])]
    for block, channels in zip(unet.down_blocks, out, strict=True):
        found += [int(channels)] * (len(block.resnets) + len(block.downsamplers or ()))
    return found


def _run(block: Any, x: Tensor, time: Tensor, tokens: Tensor) -> Any:
    """A block of the UNet, with attention to the prompt where it has some."""
    if getattr(block, "has_cross_attention", False):  # diffusers sets it on some classes only
        return block(x, time, encoder_hidden_states=tokens)
    return block(x, time)


def _check_taps(taps: Sequence[int], there: range, what: str) -> None:
    if list(taps) != sorted(set(taps)) or not all(tap in there for tap in taps):
        raise ValueError(
            f"taps {tuple(taps)}: they must rise and lie in {there.start} to {there.stop - 1} ({what})"
        )


def pooled(maps: Sequence[Tensor]) -> list[Tensor]:
    """(B, W_i) float32 means of maps (B, N_i, W_i)."""
    return [torch.mean(m.float(), 1) for m in maps]
