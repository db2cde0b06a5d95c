"""Merge tokens before self-attention, to make it cheaper (Bolya and Hoffman 2023, arXiv:2303.17604).

The algorithm is that of the authors' code (tomesd 0.1.3 with its defaults). One token of each 2x2 square is a
destination, the others are sources. The sources most similar to a destination, ``ratio`` of all tokens, are averaged
into it; self-attention runs on the remaining tokens, and each merged token gets the output of its destination. Only the
level with the most tokens merges, where attention is costliest: in SD v1 that of 64x64. Each row of a batch is matched
on its own.

tomesd draws new destinations at every step. Here they are constants of the graph, drawn once for each block, so that a
picture depends on its request alone (docs/decisions/0080).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from diffusers.models.attention import BasicTransformerBlock

from sdrt.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Indices = npt.NDArray[np.int64]

#: Side in tokens of the squares that have one destination each (sx and sy of tomesd).
STRIDE = 2
_BLOCK = re.compile(r"(?P<side>down|up)_blocks\.(?P<index>\d+)\.")


def merge_tokens(unet: UNet2DConditionModel, ratio: float) -> int:
    """Replace the outermost transformer blocks of a UNet by blocks that merge tokens, in place.

    Args:
        unet: The UNet; its ``sample_size`` must be square.
        ratio: Share of the tokens to merge, checked by `sdrt.artefacts.manifest.check_token_merging`.

    Returns:
        The number of blocks replaced.

    Raises:
        CheckpointError: The UNet has no self-attention, or its blocks differ from SD v1's.
        UsageError: The share amounts to less than one token.
    """
    sides = {
        name: _side(unet, name) for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)
    }
    if not sides:
        hint = "leave token merging out"
        raise CheckpointError("the UNet has no self-attention, so there are no tokens to merge", hint=hint)
    most = max(sides.values())
    if int(most * most * ratio) < 1:
        hint = "0.5 merges half of the tokens; leave token merging out to merge none"
        raise UsageError(f"token_merging {ratio} merges none of {most * most} tokens", hint=hint)
    chosen = [name for name, side in sides.items() if side == most]
    for number, name in enumerate(chosen):
        parent, _, child = name.rpartition(".")
        block = unet.get_submodule(name)
        if block.norm_type != "layer_norm" or block.only_cross_attention:
            hint = "token merging is for SD v1's blocks; leave it out"
            raise CheckpointError(f"{name} of the UNet is not a block of SD v1's kind", hint=hint)
        merging = MergingBlock(block, BipartiteMatching(most, ratio, number))
        unet.get_submodule(parent).register_module(child, merging)
    return len(chosen)


def _side(unet: UNet2DConditionModel, name: str) -> int:
    """Return the number of tokens along a side of a transformer block's input; each level halves it."""
    sample_size = unet.config["sample_size"]
    size: int = sample_size if isinstance(sample_size, int) else sample_size[0]
    levels = len(unet.config["block_out_channels"])
    found = _BLOCK.match(name)
    level = levels - 1
    if found is not None:
        index = int(found["index"])
        level = index if found["side"] == "down" else levels - 1 - index
    return -(-size >> level)


def destinations(side: int, number: int) -> Indices:
    """Draw one destination from each 2x2 square of side x side tokens.

    Tokens beyond the last whole square are no destinations. PCG64's raw stream is the same in every version of NumPy.

    Args:
        side: Number of tokens along a side.
        number: Number of the block, which is the seed.

    Returns:
        Ascending indices int64 [(side // 2) ** 2].
    """
    squares = side // STRIDE
    grid = np.arange(side * side).reshape(side, side)[: squares * STRIDE, : squares * STRIDE]
    of_squares = grid.reshape(squares, STRIDE, squares, STRIDE).swapaxes(1, 2).reshape(-1, STRIDE * STRIDE)
    drawn = np.random.PCG64(number).random_raw(len(of_squares)) % (STRIDE * STRIDE)
    return np.sort(of_squares[np.arange(len(of_squares)), drawn.astype(np.int64)])


class BipartiteMatching(torch.nn.Module):
    """Bipartite soft matching between sources and destinations (section 3 of the paper).

    Args:
        side: Number of tokens along a side.
        ratio: Share of the tokens to merge, limited to the sources.
        number: Number of the block, from which its destinations are drawn.
    """

    sources: torch.Tensor
    destinations: torch.Tensor
    back: torch.Tensor
    numbers: torch.Tensor

    def __init__(self, side: int, ratio: float, number: int) -> None:
        super().__init__()
        chosen = destinations(side, number)
        others = np.setdiff1d(np.arange(side * side), chosen)
        for name, indices in (
            ("sources", others),
            ("destinations", chosen),
            # Restores the picture's order from sources followed by destinations.
            ("back", np.argsort(np.concatenate([others, chosen]))),
            ("numbers", np.arange(len(chosen))[:, None]),
        ):
            self.register_buffer(name, torch.from_numpy(indices), persistent=False)
        self.merged = min(int(side * side * ratio), len(others))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Match the tokens [n,tokens,channels] of a block's input by cosine similarity.

        Returns:
            Sources int64 [n,sources], the most similar to a destination first; and the number of each source's
            destination int64 [n,sources], sources in the picture's order.
        """
        # In fp16 the sum of 320 squares may overflow.
        wide = hidden_states.float()
        metric = (wide / wide.norm(dim=-1, keepdim=True).clamp(min=1e-12)).to(hidden_states.dtype)
        at_sources, at_destinations = self._split(metric)
        similarity, nearest = (at_sources @ at_destinations.transpose(1, 2)).max(dim=-1)
        return torch.topk(similarity, len(self.sources), dim=-1).indices, nearest

    def merge(self, tokens: torch.Tensor, order: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """Merge tokens [n,tokens,channels] to [n,tokens - merged,channels]: destinations, then unmerged sources."""
        sources, kept = self._split(tokens)
        sources = _rows(sources, order)
        into = nearest.gather(1, order[:, : self.merged])
        # A matrix product, not a scatter: it runs in parallel, and does not round a long sum after each term.
        members = (into[:, None] == self.numbers).to(tokens.dtype)
        means = (kept + members @ sources[:, : self.merged]) / (1 + members.sum(dim=-1, keepdim=True))
        return torch.cat([means, sources[:, self.merged :]], dim=1) if self._some_alone else means

    def unmerge(self, tokens: torch.Tensor, order: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """Undo `merge`, [n,tokens - merged,channels] to [n,tokens,channels]: merged sources get their destination's."""
        place = nearest
        if self._some_alone:
            # The inverse permutation of the order; argsort would add shape operators to the graph.
            rank = torch.topk(order, len(self.sources), dim=1, largest=False).indices
            place = torch.where(rank < self.merged, nearest, rank + (len(self.destinations) - self.merged))
        sources = _rows(tokens, place)
        return torch.cat([sources, tokens[:, : len(self.destinations)]], dim=1).index_select(1, self.back)

    @property
    def _some_alone(self) -> bool:
        return self.merged < len(self.sources)

    def _split(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tokens.index_select(1, self.sources), tokens.index_select(1, self.destinations)


def _rows(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gather tokens [n,tokens,channels] at indices [n,count] in each row of the batch."""
    if torch.onnx.is_in_onnx_export():
        # torch.gather would be exported with an index for every channel.
        shape = (*indices.shape, tokens.shape[2])
        inputs = (tokens, indices.unsqueeze(-1))
        return torch.onnx.ops.symbolic(
            "GatherND", inputs, {"batch_dims": 1}, dtype=tokens.dtype, shape=shape, version=13
        )
    return tokens.take_along_dim(indices.unsqueeze(-1), dim=1)


class MergingBlock(torch.nn.Module):
    """A transformer block of SD v1 whose self-attention runs on merged tokens; its submodules keep their names.

    Args:
        block: The block whose submodules are used.
        matching: The matching for its number of tokens.
    """

    def __init__(self, block: BasicTransformerBlock, matching: BipartiteMatching) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff
        self.matching = matching

    def forward(self, hidden_states: torch.Tensor, *, encoder_hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        """Apply self-attention, cross-attention and feed-forward; other arguments of diffusers are None in SD v1."""
        order, nearest = self.matching(hidden_states)
        merged = self.matching.merge(self.norm1(hidden_states), order, nearest)
        hidden_states = self.matching.unmerge(self.attn1(merged), order, nearest) + hidden_states
        normal = self.norm2(hidden_states)
        hidden_states = self.attn2(normal, encoder_hidden_states=encoder_hidden_states) + hidden_states
        attended: torch.Tensor = self.ff(self.norm3(hidden_states)) + hidden_states
        return attended
