"""The page: it is complete, and no name from a file becomes HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from sdrt.inspect.block import Block
from sdrt.inspect.checkpoint import config_trees
from sdrt.inspect.page import page
from tests.models.tiny import TEXT_ENCODER, UNET, VAE, v1_config

VOID = ("meta",)


class Balance(HTMLParser):
    """Checks that tags are balanced; collects text, and the tags seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Balance:
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    return parser


def found(name: str = "tiny") -> dict[str, Any]:
    parts = {"text_encoder": TEXT_ENCODER, "unet": UNET, "vae": VAE}
    trees = config_trees(*({**v1_config(part), **changes} for part, changes in parts.items()))
    return {
        "kind": "checkpoint",
        "checkpoint": name,
        "checkpoint_digest": "ab" * 32,
        "prediction_type": "epsilon",
        "guidance_scale": 7.5,
        "notes": [],
        "parameters": sum(tree.parameters for tree in trees.values()),
        "files": {name: {"dtypes": {"F32": 3}, "size_bytes": 12}},
        "components": {
            part: {"parameters": tree.parameters, "flops": tree.flops, "tree": tree} for part, tree in trees.items()
        },
    }


def test_every_block_is_on_the_page() -> None:
    facts = found()
    parsed = read(page(facts))
    blocks = [block for part in facts["components"].values() for _, block in part["tree"].walk() if block.name]
    words = "".join(parsed.text)
    assert parsed.text.count("ResnetBlock2D") == sum(block.kind == "ResnetBlock2D" for block in blocks)
    assert "64+32 → 96x64x64" not in words
    assert "32+32 → 64x64x64" in words
    assert "svg" in parsed.tags


def test_it_runs_and_fetches_nothing() -> None:
    html = page(found())
    assert "default-src 'none'" in html
    assert not read(html).tags & {"script", "link", "img", "iframe", "object"}


def test_names_stay_words() -> None:
    evil = "<script>alert(1)</script><img src=x>"
    facts = found(evil)
    facts["components"]["unet"]["inputs"] = {evil: evil}
    facts["components"]["unet"]["outputs"] = {}
    tree = facts["components"]["unet"]["tree"]
    facts["components"]["vae_decoder"]["tree"] = Block(
        "", tree.kind, 1, 1, (), (), children=(Block(evil, evil, 1, 1, (), ()),)
    )
    parsed = read(page(facts))
    assert not parsed.tags & {"script", "img"}
    assert evil in "".join(parsed.text)


def test_what_has_no_tree_is_still_told() -> None:
    facts = {
        "kind": "engines",
        "backend": "openvino",
        "checkpoint": "demo",
        "precision": "bf16",
        "guidance_scale": 7.5,
        "host": {"machine": "x86_64"},
        "components": {
            "unet": {
                "precision": "bf16",
                "size_bytes": 12,
                "inputs": {"sample": "float32 [batch,4,64,64]"},
                "outputs": {},
                "profile": None,
                "layers": {"convolution": {"bf16": 3}},
                "attentions": [],
            }
        },
    }
    words = "".join(read(page(facts)).text)
    assert "openvino engines of demo, bf16" in words
    assert "for machine x86_64" in words
    assert "3 bf16" in words
