"""The drawing of the U: well-formed, complete, and as wide as the page."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from sdrt.errors import ArtefactError
from sdrt.inspect.block import Block
from sdrt.inspect.drawing import BOX_WIDTH, WIDTH, drawing
from sdrt.inspect.text_encoder import text_encoder_tree
from sdrt.inspect.unet import unet_tree
from tests.models.tiny import UNET, v1_config

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """Return the words of a drawing, in order."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def tree() -> Block:
    return unet_tree(v1_config("unet"), 77)


def test_every_block_and_every_skip_is_drawn(tree: Block) -> None:
    svg = drawing(tree, "v1.4")
    words = texts(svg)
    assert words[0] == "v1.4: the UNet, 859.5 M parameters"
    # Twelve skips, from the first convolution, eight ResNet blocks and three downsamplers.
    assert svg.count('<path class="skip"') == 12
    joined = [word for word in words if "+" in word and "=" in word]
    assert len(joined) == 12
    assert joined.count("640+320 = 960 → 320x64x64") == 1
    assert joined.count("1280+1280 = 2560 → 1280x8x8") == 3
    for part in tree.children:
        blocks = [] if part.name in ("time_embedding", "conv_norm_out", "conv_out") else part.children or (part,)
        for block in blocks:
            assert f"{block.name}: {block.kind}, {block.parameters:,} parameters" in svg, block.name
    assert "ResNet block; takes the time embedding, 1280 wide" in words
    assert any("77x768" in word for word in words)


def test_a_skip_that_is_not_there_is_not_drawn() -> None:
    svg = drawing(unet_tree({**v1_config("unet"), **UNET}, 77), "tiny")
    assert svg.count('<path class="skip"') == 8
    assert "640+320" not in svg


def test_boxes_do_not_overlap_and_stay_on_the_page(tree: Block) -> None:
    boxes = []
    for element in ElementTree.fromstring(drawing(tree, "v1.4")).iter(f"{SVG}rect"):
        if "box" in element.attrib["class"]:
            boxes.append(tuple(float(element.attrib[name]) for name in ("x", "y", "width", "height")))
    assert max(width for _, _, width, _ in boxes) == BOX_WIDTH
    for number, (x, y, width, height) in enumerate(boxes):
        assert x >= 0
        assert x + width <= WIDTH
        for other_x, other_y, other_width, other_height in boxes[:number]:
            apart = x >= other_x + other_width or other_x >= x + width
            assert apart or y >= other_y + other_height or other_y >= y + height


def test_it_is_drawn_in_light_and_dark_and_fetches_nothing(tree: Block) -> None:
    svg = drawing(tree, "v1.4")
    assert "prefers-color-scheme: dark" in svg
    assert "href" not in svg
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_a_title_cannot_add_to_the_drawing(tree: Block) -> None:
    svg = drawing(tree, "<script>alert(1)</script>&")
    assert "<script" not in svg
    assert texts(svg)[0].startswith("<script>alert(1)</script>&: the UNet")


def test_what_has_no_skips_is_not_drawn() -> None:
    with pytest.raises(ArtefactError, match="no U to draw"):
        drawing(text_encoder_tree(v1_config("text_encoder")), "text")
