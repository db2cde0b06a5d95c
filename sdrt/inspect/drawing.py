"""Drawing of a UNet as an SVG: down the left, up the right, a line for each skip connection between them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from sdrt.errors import ArtefactError
from sdrt.inspect.block import Block, Shape, shape_text

WIDTH = 1080
BOX_WIDTH, BOX_HEIGHT, ROW = 310, 40, 54
#: Indent and vertical gap at each halving of the size, in pixels.
INDENT, GAP = 40, 40
TOP, MARGIN, FOOT = 128, 24, 84
#: For light and dark. Colour-blind readers can tell the colours apart (Okabe and Ito 2008, lightened or darkened).
STYLE = """
:root { --ink: #1c2024; --soft: #565c62; --back: #ffffff; --line: #7a8087;
  --conv: #e9ecef; --resnet: #dcebf7; --attending: #fbe6d4; --sampler: #d9f0e6;
  --conv-edge: #7a8087; --resnet-edge: #0072b2; --attending-edge: #c25400; --sampler-edge: #00805c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a8aeb4; --back: #15181b; --line: #8b9198;
  --conv: #262a2e; --resnet: #12293c; --attending: #3a2412; --sampler: #10301f;
  --conv-edge: #8b9198; --resnet-edge: #56b4e9; --attending-edge: #f0984f; --sampler-edge: #3cc798; } }
.u { font-family: system-ui, sans-serif; }
.u .back { fill: var(--back); } .u text { fill: var(--ink); font-size: 12px; }
.u .title { font-size: 18px; font-weight: 600; } .u .soft { fill: var(--soft); }
.u .name { font-family: ui-monospace, monospace; font-size: 11.5px; }
.u rect.box { stroke-width: 1.5; } .u .conv { fill: var(--conv); stroke: var(--conv-edge); }
.u .resnet { fill: var(--resnet); stroke: var(--resnet-edge); }
.u .attending { fill: var(--attending); stroke: var(--attending-edge); }
.u .sampler { fill: var(--sampler); stroke: var(--sampler-edge); }
.u .path { stroke: var(--ink); stroke-width: 1.6; fill: none; }
.u .skip { stroke: var(--line); stroke-width: 1.6; stroke-dasharray: 6 4; fill: none; }
.u .plate { fill: var(--back); } .u .head { fill: var(--ink); } .u .skip-head { fill: var(--line); }
"""
LEGEND = (
    ("resnet", "ResNet block; takes the time embedding, {time} wide"),
    ("attending", "with a transformer; takes the prompt too, {states}"),
    ("sampler", "down- or upsampler"),
    ("conv", "convolution"),
)


@dataclass(frozen=True)
class Stage:
    """One box: consecutive blocks between two skip connections."""

    blocks: tuple[Block, ...]

    @property
    def look(self) -> str:
        """Its CSS class."""
        kinds = {block.kind for block in self.blocks}
        if "Transformer2DModel" in kinds:
            return "attending"
        if "ResnetBlock2D" in kinds:
            return "resnet"
        return "sampler" if kinds & {"Downsample2D", "Upsample2D"} else "conv"

    @property
    def output(self) -> Shape:
        """Shape of its output."""
        return self.blocks[-1].output

    @property
    def name(self) -> str:
        """Path of the first block, then the labels of the others."""
        return " + ".join([self.blocks[0].name, *(block.label for block in self.blocks[1:])])

    @property
    def flow(self) -> str:
        """Its input shape, or the channels that are concatenated, and its output shape."""
        first = self.blocks[0]
        joined = f"{'+'.join(map(str, first.joined))} = {first.input[0]}" if first.joined else shape_text(first.input)
        return f"{joined} → {shape_text(self.output)}"

    @property
    def parameters(self) -> int:
        """Number of weights of its blocks."""
        return sum(block.parameters for block in self.blocks)


def drawing(unet: Block, title: str) -> str:
    """Draw a UNet as a self-contained SVG document, for light and dark.

    Args:
        unet: The tree of a UNet.
        title: Name of the checkpoint.

    Raises:
        ArtefactError: The tree has no skip connections, so it is not a UNet's.
    """
    return _Drawing(unet).document(title)


def _stages(unet: Block) -> tuple[list[Stage], list[Stage], list[Stage], dict[str, Stage]]:
    """Divide a UNet's blocks into stages.

    Returns:
        The stages on the way down, each of which outputs a skip connection; the middle's; those on the way up, each of
        which takes one; and the upsamplers by the name of their level.

    Raises:
        ArtefactError: Skip connections are unknown.
    """
    down: list[Stage] = []
    middle: list[Stage] = []
    up: list[Stage] = []
    upsamplers: dict[str, Stage] = {}
    for part in unet.children:
        blocks = [Stage((block,)) for block in part.children]
        if part.name == "conv_in":
            down.append(Stage((part,)))
        elif part.name.startswith("down_blocks."):
            down += _pairs(part)
        elif part.name.startswith("up_blocks."):
            up += [stage for stage in _pairs(part) if stage.look != "sampler"]
            for stage in blocks:
                if stage.look == "sampler":
                    upsamplers[part.name] = stage
        elif part.name == "mid_block":
            middle = blocks
    if not middle or len(down) != len(up) or not all(stage.blocks[0].joined for stage in up):
        raise ArtefactError(
            "there is no U to draw: skip connections are unknown", hint="give a checkpoint or its bundle"
        )
    return down, middle, up, upsamplers


def _pairs(part: Block) -> list[Stage]:
    """Group a level's blocks into stages, each transformer with the ResNet block before it."""
    stages: list[Stage] = []
    for block in part.children:
        if block.kind == "Transformer2DModel" and stages:
            stages[-1] = Stage((*stages[-1].blocks, block))
        else:
            stages.append(Stage((block,)))
    return stages


class _Drawing:
    """SVG elements of a drawing, row by row: a stage on the way down, and the one on the way up that takes its skip."""

    def __init__(self, unet: Block) -> None:
        self.unet = unet
        self.down, self.middle, up, self.upsamplers = _stages(unet)
        self.up = up[::-1]
        sizes = [stage.output[1] for stage in self.down]
        self.levels = [sorted(set(sizes), reverse=True).index(size) for size in sizes]
        self.tops = [TOP + row * ROW + self.levels[row] * GAP for row in range(len(sizes))]
        self.middle_top = self.tops[-1] + ROW + GAP
        self.height = self.middle_top + BOX_HEIGHT + FOOT
        self.parts: list[str] = []

    def document(self, title: str) -> str:
        """Return the SVG document."""
        words = escape(f"{title}: the UNet, {self.unet.parameters / 1e6:.1f} M parameters")
        self._draw_ends()
        for row in range(len(self.down)):
            self._draw_row(row)
        self._draw_middle()
        self._draw_legend()
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="u" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{words}"><style>{STYLE}</style><defs>{_marker("head")}{_marker("skip-head")}</defs>'
            f'<rect class="back" width="{WIDTH}" height="{self.height}"/>'
            f'<text class="title" x="{WIDTH / 2}" y="34" text-anchor="middle">{words}</text>'
        )
        return "\n".join([head, *self.parts, "</svg>\n"])

    def _left(self, row: int) -> float:
        return MARGIN + self.levels[row] * INDENT

    def _right(self, row: int) -> float:
        return WIDTH - MARGIN - BOX_WIDTH - self.levels[row] * INDENT

    def _draw_ends(self) -> None:
        """Draw the input at the top left and the output at the top right."""
        taken, given = shape_text(self.unet.input), shape_text(self.unet.output)
        left, right = self._left(0) + BOX_WIDTH / 2, self._right(0) + BOX_WIDTH / 2
        out = [block for block in self.unet.children if block.name in ("conv_norm_out", "conv_out")]
        self._draw_text(left, TOP - 46, f"noisy latents {taken}")
        self._draw_line("path", left, TOP - 38, left, TOP - 4)
        self._draw_text(right, TOP - 46, f"{' + '.join(block.name for block in out)}: prediction {given}")
        self._draw_line("path", right, TOP, right, TOP - 36)

    def _draw_row(self, row: int) -> None:
        """Draw a stage on the way down, one on the way up, the skip connection between them, and arrows onwards."""
        top, left, right = self.tops[row], self._left(row), self._right(row)
        down, up = self.down[row], self.up[row]
        middle, y = (left + BOX_WIDTH + right) / 2, top + BOX_HEIGHT / 2
        self._draw_line("skip", left + BOX_WIDTH, y, right - 5, y)
        label = shape_text(down.output)
        self.parts.append(f'<rect class="plate" x="{middle - 42}" y="{y - 9}" width="84" height="18"/>')
        self._draw_text(middle, y + 4, label, "soft")
        self._draw_box(left, top, down)
        self._draw_box(right, top, up)
        if row + 1 < len(self.down):
            self._draw_arrows(row)

    def _draw_arrows(self, row: int) -> None:
        """Draw arrows to the next row on the left and from it on the right, with an upsampler if the size changes."""
        top, below = self.tops[row] + BOX_HEIGHT, self.tops[row + 1]
        x = self._left(row + 1) + BOX_WIDTH / 2
        self._draw_line("path", x, top, x, below - 4)
        x = self._right(row + 1) + BOX_WIDTH / 2
        if self.levels[row] == self.levels[row + 1]:
            self._draw_line("path", x, below, x, top + 4)
            return
        # The stage below is the last of its level on the way up; its upsampler follows.
        block = self.up[row + 1].blocks[0].name.rpartition(".resnets.")[0]
        sampler = self.upsamplers.get(block)
        if sampler is not None:
            place = top + (below - top - 24) / 2
            self._draw_line("path", x, below, x, place + 28)
            self._draw_line("path", x, place, x, top + 4)
            text = f"{sampler.blocks[0].label} → {shape_text(sampler.output)}"
            self.parts.append(f"<g>{_title(sampler)}")
            self.parts.append(f'<rect class="box sampler" x="{x - 110}" y="{place}" width="220" height="24" rx="4"/>')
            self._draw_text(x, place + 16, text, "name")
            self.parts.append("</g>")

    def _draw_middle(self) -> None:
        """Draw the middle from left to right, below the rows."""
        last = len(self.down) - 1
        left, right = self._left(last), self._right(last) + BOX_WIDTH
        space = 26.0
        width = (right - left - space * (len(self.middle) - 1)) / len(self.middle)
        for number, stage in enumerate(self.middle):
            x = left + number * (width + space)
            self._draw_box(x, self.middle_top, stage, width)
            if number:
                y = self.middle_top + BOX_HEIGHT / 2
                self._draw_line("path", x - space, y, x - 5, y)
        for x, start, end in (
            (left + width / 2, self.tops[last] + BOX_HEIGHT, self.middle_top - 4),
            (right - width / 2, self.middle_top, self.tops[last] + BOX_HEIGHT + 4),
        ):
            self._draw_line("path", x, start, x, end)

    def _draw_legend(self) -> None:
        """Draw the meaning of the colours, with the widths of the time embedding and the prompt's hidden states."""
        time = next((shape_text(part.output) for part in self.unet.children if part.name == "time_embedding"), "?")
        states = [block.input for _, block in self.unet.walk() if block.name.endswith("attn2.to_k")]
        values = {"time": time, "states": shape_text(states[0]) if states else "not used"}
        x, y = float(MARGIN), self.height - 40
        for look, text in LEGEND:
            words = text.format(**values)
            self.parts.append(f'<rect class="box {look}" x="{x}" y="{y}" width="18" height="14" rx="3"/>')
            self._draw_text(x + 25, y + 11, words, "soft", anchor="start")
            x += 48 + 6.4 * len(words)
        shapes = "shapes are channels x height x width of one sample"
        note = f"dashed: a skip connection, concatenated with the output from below; {shapes}"
        self._draw_text(MARGIN, self.height - 10, note, "soft", anchor="start")

    def _draw_box(self, x: float, y: float, stage: Stage, width: float = BOX_WIDTH) -> None:
        count = f"{stage.parameters / 1e6:.1f} M" if stage.parameters >= 1e5 else f"{stage.parameters / 1e3:.1f} k"
        self.parts.append(
            f'<g>{_title(stage)}<rect class="box {stage.look}" x="{x:.1f}" y="{y}" '
            f'width="{width:.1f}" height="{BOX_HEIGHT}" rx="5"/>'
        )
        self._draw_text(x + 10, y + 16, stage.name, "name", anchor="start")
        self._draw_text(x + 10, y + 32, stage.flow, anchor="start")
        self._draw_text(x + width - 10, y + 32, count, "soft", anchor="end")
        self.parts.append("</g>")

    def _draw_line(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        head = "skip-head" if kind == "skip" else "head"
        self.parts.append(f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" marker-end="url(#{head})"/>')

    def _draw_text(self, x: float, y: float, text: str, look: str = "", anchor: str = "middle") -> None:
        self.parts.append(f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')


def _title(stage: Stage) -> str:
    """Return the tooltip of a box."""
    lines = (f"{block.name}: {block.kind}, {block.parameters:,} parameters" for block in stage.blocks)
    return "<title>" + escape("\n".join(lines)) + "</title>"


def _marker(name: str) -> str:
    """Return an SVG marker that draws the head of arrows."""
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="8" markerHeight="8" orient="auto" '
        f'markerUnits="userSpaceOnUse"><path class="{name}" d="M0 0L8 4L0 8z"/></marker>'
    )
