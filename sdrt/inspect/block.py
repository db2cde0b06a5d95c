"""A block of a network: what the trees of ``sdrt inspect`` are made of, whether read from configs or from graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Of one sample: [channels, height, width], [tokens, width] or [width]; [tokens] of ids. The batch is left out.
Shape = tuple[int, ...]


def shape_text(shape: Shape) -> str:
    """A shape as people read it: 320x64x64."""
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class Block:
    """One module with weights, or one that holds such.

    Attributes:
        name: Its path in the component, as ``up_blocks.1.resnets.0``; "" for the component itself.
        kind: The class that diffusers or transformers calls it by.
        parameters: How many weights it and its children have.
        flops: Of one sample: two for each multiply-add of convolutions, matrix and attention products.
        input: Shape of what it takes in first.
        output: Shape of what it puts out last.
        joined: Channels that were concatenated to give its input: the path's, then the skip's; () where none were.
        children: In the order in which they run.
        seconds: How long it takes for one sample, children included, where that was measured.
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
        """The name below its parent: ``resnets.0`` of ``up_blocks.1.resnets.0``."""
        words = self.name.split(".")
        numbered = words[-1].isdigit() and len(words) > 1
        return ".".join(words[-2:] if numbered else words[-1:])

    def walk(self, depth: int | None = None) -> Iterator[tuple[int, Block]]:
        """Itself at level 0 and what is below it, down to level ``depth``, in the order in which it runs."""
        yield 0, self
        if depth == 0:
            return
        for child in self.children:
            for level, block in child.walk(None if depth is None else depth - 1):
                yield level + 1, block

    def plain(self, depth: int | None = None) -> dict[str, Any]:
        """As JSON has it; children down to level ``depth``."""
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


def timed(tree: Block, seconds: Mapping[str, float]) -> Block:
    """The tree with seconds, from those of modules by path; a module that is no block counts for the one it lies in."""
    names = {block.name for _, block in tree.walk()}
    own: dict[str, float] = dict.fromkeys(names, 0.0)
    for path, taken in seconds.items():
        while path not in names:
            path = path.rpartition(".")[0]
        own[path] += taken
    return _with_seconds(tree, own)


def _with_seconds(block: Block, own: Mapping[str, float]) -> Block:
    children = tuple(_with_seconds(child, own) for child in block.children)
    total = own[block.name] + sum(child.seconds or 0.0 for child in children)
    return replace(block, children=children, seconds=total)


def holding(
    name: str,
    kind: str,
    children: Sequence[Block],
    *,
    input: Shape | None = None,  # noqa: A002
    output: Shape | None = None,
    joined: tuple[int, ...] = (),
    flops: int = 0,
) -> Block:
    """A block of blocks: their weights and work, and ``flops`` of its own.

    Its input is the first child's and its output the last one's, where they are not given.
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
