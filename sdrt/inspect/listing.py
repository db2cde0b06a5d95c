"""Text that ``sdrt inspect`` prints: facts, layers, and the tree of blocks as a table."""

from __future__ import annotations

from typing import Any

from sdrt.inspect.block import Block, shape_text
from sdrt.limits import DEFAULT_GUIDANCE_SCALE
from sdrt.terminal import size_text

#: Number of columns with words; the columns after them have numbers.
NAMES = 4
#: Bytes of a float32.
FP32_BYTES = 4


def lines(found: dict[str, Any], depth: int | None) -> list[str]:
    """Format a result of `sdrt.inspect.examine.examine` as lines, with trees down to level ``depth``."""
    text = head(found)
    for name, facts in found["components"].items():
        text += ["", *component_lines(name, facts)]
        tree = facts.get("tree")
        if tree is not None and tree.children and depth != 0:
            text += table(tree, depth)
    return text


def component_lines(name: str, facts: dict[str, Any]) -> list[str]:
    """Format a component's totals, and its tensors and layers if known."""
    text = [_title(name, facts)]
    text += _tensors(facts) if "inputs" in facts else []
    text += _layers(facts) if "layers" in facts else []
    return text


def count_text(count: int) -> str:
    """Format a number of parameters, for example 859.52 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def input_text(block: Block) -> str:
    """Format a block's input shape, with the channels concatenated to form it, for example 640+320 -> 960x64x64."""
    joined = f"{'+'.join(map(str, block.joined))} -> " if block.joined else ""
    return joined + shape_text(block.input)


def share_text(part: float, whole: float) -> str:
    """Format a share, for example 12.3%; "-" if the whole is 0."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def table(tree: Block, depth: int | None) -> list[str]:
    """Format a tree as a table with a row for each block, down to level ``depth``."""
    rows: list[tuple[str, ...]] = [("block", "kind", "input", "output", "parameters", "GFLOP", "share")]
    if tree.seconds is not None:
        rows[0] += ("ms", "share of time")
    for level, block in tree.walk(depth):
        if level:
            rows.append(
                (
                    "  " * (level - 1) + block.label,
                    block.kind,
                    input_text(block),
                    shape_text(block.output),
                    count_text(block.parameters),
                    f"{block.flops / 1e9:.3f}",
                    share_text(block.flops, tree.flops),
                    *_times(block, tree),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = [at < NAMES for at in range(len(widths))]
    return ["  " + "  ".join(_cell(*each) for each in zip(row, widths, left, strict=True)).rstrip() for row in rows]


def _times(block: Block, tree: Block) -> tuple[str, ...]:
    """Format milliseconds and share of the time, if they were measured."""
    if block.seconds is None or tree.seconds is None:
        return ()
    return f"{1e3 * block.seconds:.2f}", share_text(block.seconds, tree.seconds)


def _cell(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def head(found: dict[str, Any]) -> list[str]:
    """Format an artefact's origin and totals as lines."""
    if found["kind"] == "checkpoint":
        total = found["parameters"]
        files = ", ".join(
            f"{part} {'/'.join(sorted(file['dtypes']))} {size_text(file['size_bytes'])}"
            for part, file in found["files"].items()
        )
        text = [
            f"checkpoint {found['checkpoint']}, {found['prediction_type']}, digest {found['checkpoint_digest']}",
            f"{count_text(total)} parameters, {size_text(FP32_BYTES * total)} in fp32; files: {files}",
            *found["notes"],
        ]
    else:
        engines = found["kind"] == "engines"
        what = f"{found['backend']} engines" if engines else f"bundle, opset {found['opset']}"
        merging = f", {found['token_merging']} of the tokens merged" if found.get("token_merging") else ""
        text = [f"{what} of {found['checkpoint']}, {found['precision']}{merging}"]
    if found["guidance_scale"] != DEFAULT_GUIDANCE_SCALE:
        text.append(f"recommends guidance scale {found['guidance_scale']:g}")
    if found.get("host"):
        text.append("for " + ", ".join(f"{key} {value}" for key, value in found["host"].items()))
    run = found.get("benchmark")
    if run:
        text.append(
            f"times: {run['run']} ({run['backend']} {run['precision']}, {run['threads']} threads), "
            f"{run['seconds']:.3g} s for {run['batch']} of {run['steps']} steps"
        )
    return text


def _title(name: str, facts: dict[str, Any]) -> str:
    """Format a component's name and totals."""
    parts = []
    tree = facts.get("tree")
    if "precision" in facts:
        parts += [facts["precision"], size_text(facts["size_bytes"])]
    elif tree is not None:
        parts.append(tree.kind)
    if facts.get("parameters") is not None:
        count = facts["parameters"]
        parts += [f"{count_text(count)} parameters ({size_text(FP32_BYTES * count)} in fp32)"]
        parts += [f"{facts['flops'] / 1e9:.3f} GFLOP a sample"]
    if tree is not None and tree.seconds is not None:
        parts.append(f"{1e3 * tree.seconds:.4g} ms by ONNX Runtime")
    if "time" in facts:
        parts.append(f"{facts['time']['seconds']:.3g} s, {100 * facts['time']['share']:.1f}% of the time")
    return f"{name}: {', '.join(parts)}"


def _tensors(facts: dict[str, Any]) -> list[str]:
    text = [
        f"  {arrow} {tensor:24}{what}"
        for arrow, group in (("<-", "inputs"), ("->", "outputs"))
        for tensor, what in facts[group].items()
    ]
    profile = facts.get("profile")
    if profile:
        text.append(f"  profile: batch {profile['min']} to {profile['max']}, fastest at {profile['opt']}")
    return text


def _layers(facts: dict[str, Any]) -> list[str]:
    if facts["layers"] is None:
        return ["  layers: not listed by the backend"]
    kinds = [
        f"  {kind:24}{', '.join(f'{count} {precision}' for precision, count in counts.items())}"
        for kind, counts in facts["layers"].items()
    ]
    return kinds + _attentions(facts["attentions"])


def _attentions(attentions: list[dict[str, Any]]) -> list[str]:
    if not attentions:
        return []
    if "fused" not in attentions[0]:
        return [f"  attentions: {len(attentions)}"]
    fused = sum(attention["fused"] for attention in attentions)
    text = [f"  attentions: {len(attentions)}, {fused} of them fused"]
    for attention in attentions:
        if not attention["fused"]:
            shape = (
                f"{attention['heads']} heads of {attention['head_size']}, {attention['queries']}x{attention['keys']}"
            )
            text.append(f"    decomposed: {attention['name']} ({shape})")
    return text
