"""Blocks of a network, which form the trees of ``sdrt inspect``, whether read from configs or from graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Shape of one sample, without the batch: [channels, height, width], [tokens, width] or [width]; [tokens] for ids.
Shape = tuple[int, ...]


def shape_text(shape: Shape) -> str:
    """Format a shape, for example 320x64x64."""
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class Block:
    """A module with weights, or one whose submodules have weights.

    Attributes:
        name: Path in the component, such as ``up_blocks.1.resnets.0``; "" for the component itself.
        kind: Name of its class in diffusers or transformers.
        parameters: Number of weights, those of its children included.
        flops: FLOPs of one sample: two for each multiply-add of convolutions, matrix and attention products.
        input: Shape of its first input.
        output: Shape of its last output.
        joined: Channels that were concatenated to form its input, those of the skip connection last; () if none were.
        children: Children in the order in which they run.
        seconds: Time for one sample, children included; None if it was not measured.
    """

    name: str
    kind: str
    parameters: int
    flops: int
    input: Shape
    output: Shape
    joined: tuple[int, ...] = ()
    children: tuple[Block, ...] = ()
    seconds: float | None = None

    @property
    def label(self) -> str:
        """The name without the parent's: ``resnets.0`` for ``up_blocks.1.resnets.0``."""
        words = self.name.split(".")
        numbered = words[-1].isdigit() and len(words) > 1
        return ".".join(words[-2:] if numbered else words[-1:])

    def walk(self, depth: int | None = None) -> Iterator[tuple[int, Block]]:
        """Yield (level, block) for this block, at level 0, and those below it down to ``depth``, in running order."""
        yield 0, self
        if depth == 0:
            return
        for child in self.children:
            for level, block in child.walk(None if depth is None else depth - 1):
                yield level + 1, block

    def plain(self, depth: int | None = None) -> dict[str, Any]:
        """Return the block as JSON values, with children down to level ``depth``."""
        below = None if depth is None else depth - 1
        return {
            "name": self.name,
            "kind": self.kind,
            "parameters": self.parameters,
            "flops": self.flops,
            "input": list(self.input),
            "joined": list(self.joined),
            "output": list(self.output),
            "seconds": self.seconds,
            "children": [child.plain(below) for child in self.children] if depth != 0 else [],
        }


def with_seconds(tree: Block, seconds: Mapping[str, float]) -> Block:
    """Return the tree with times.

    Args:
        tree: The tree.
        seconds: Time of each module by path. A module that is not a block counts for the block that contains it.
    """
    names = {block.name for _, block in tree.walk()}
    own: dict[str, float] = dict.fromkeys(names, 0.0)
    for path, taken in seconds.items():
        while path not in names:
            path = path.rpartition(".")[0]
        own[path] += taken
    return _add_seconds(tree, own)


def _add_seconds(block: Block, own: Mapping[str, float]) -> Block:
    children = tuple(_add_seconds(child, own) for child in block.children)
    total = own[block.name] + sum(child.seconds or 0.0 for child in children)
    return replace(block, children=children, seconds=total)


def parent_block(
    name: str,
    kind: str,
    children: Sequence[Block],
    *,
    input: Shape | None = None,  # noqa: A002
    output: Shape | None = None,
    joined: tuple[int, ...] = (),
    flops: int = 0,
) -> Block:
    """Build a block from its children.

    Args:
        name: Its path.
        kind: Name of its class.
        children: Its children, whose parameters and FLOPs are summed.
        input: Shape of its input; None is that of the first child.
        output: Shape of its output; None is that of the last child.
        joined: Channels that were concatenated to form its input.
        flops: FLOPs of its own, in addition to its children's.
    """
    return Block(
        name,
        kind,
        parameters=sum(child.parameters for child in children),
        flops=flops + sum(child.flops for child in children),
        input=children[0].input if input is None else input,
        output=children[-1].output if output is None else output,
        joined=joined,
        children=tuple(children),
    )
