"""The report shows every finding, fetches nothing, and cannot be made to run a prompt's content."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from demo.scenes import draw
from sdrt.compare.changes import find_changes, read_comparison
from sdrt.compare.error_plot import error_plot
from sdrt.compare.pictures import Pair
from sdrt.compare.prompts import PromptSeed
from sdrt.compare.report import render, write_report
from sdrt.compare.scene_grammar import parse_caption
from sdrt.compare.schema import Comparison, ComponentCase, Departure, ProxyResult
from sdrt.compare.summary import failures, headline, table, unverified
from tests.compare.comparisons import comparison, component, output, picture, trajectory

ATTACK = "<script>alert('x')</script>\"'&$title"


class Page(HTMLParser):
    """Collects a page's tags, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def pair(prompt: str = "a red circle", *, candidate: bool = True) -> Pair:
    drawn = draw(parse_caption("a red circle on white"), 256, random.Random(0))
    return Pair(PromptSeed(prompt, 7), drawn, drawn if candidate else None, "" if candidate else "NaN")


def failed() -> Comparison:
    """Build a comparison with one failure of each kind."""
    broken = component("unet", output(2e-3, "failed", "relative_l2 is 0.002; 0.001 is allowed", "out_sample"))
    where = Departure(
        tensor="norm_7", node="n7", operator="GroupNormalization", source_module="down_blocks.0.norm1", metrics=None
    )
    stand_in = ProxyResult(
        label="torch fp16",
        note="rounds elsewhere",
        outcome="passed",
        cases=(ComponentCase(label="first", batch=1, outputs=(output(3e-4),)),),
    )
    missing = component(
        "vae_decoder", cases=(), outcome="unverified", reason="needs an NVIDIA driver", proxies=(stand_in,)
    )
    return comparison(
        outcome="failed",
        components=(broken.model_copy(update={"departure": where}), missing, component("text_encoder")),
        trajectories=(trajectory(1e-5, 5e-3, first_over=1, outcome="failed", reason="step 2: over"), trajectory()),
        pictures=(picture(outcome="failed", psnr_db=20.0, ssim=0.5, reason="PSNR 20.0 dB is below 40 dB"),),
    )


def test_a_report_is_one_page_that_fetches_nothing() -> None:
    text = render(failed(), [pair()])
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text


def test_a_report_shows_everything_that_was_found() -> None:
    page = Page(render(failed(), [pair()]))
    for said in (
        "FAILED",
        "relative_l2 is 0.002; 0.001 is allowed",
        "needs an NVIDIA driver",
        "torch fp16",
        "rounds elsewhere",
        "down_blocks.0.norm1",
        "GroupNormalization",
        "step 2: over",
        "PSNR 20.0 dB is below 40 dB",
        "fp32 sums in any order",
        "relative_l2 0.0002",
        "34" * 32,
        "onnxruntime1.31",
    ):
        assert said in page.text, said


@pytest.mark.parametrize("outcome", ["passed", "failed", "unverified"])
def test_the_verdict_stands_on_top(outcome: str) -> None:
    page = Page(render(comparison(outcome=outcome), [pair()]))
    body = page.text[page.text.index("against PyTorch fp32", page.text.index("}")) :]
    assert body.index(outcome.upper()) < body.index("Components")


def test_what_a_user_named_is_shown_and_not_run() -> None:
    found = comparison(
        trajectories=(trajectory(prompt=ATTACK),),
        pictures=(picture(prompt=ATTACK, reason=ATTACK, candidate_verdict=ATTACK),),
        components=(component("unet", output(reason=ATTACK, name=ATTACK), backend=ATTACK),),
        environment={ATTACK: ATTACK},
        backend=ATTACK,
    )
    found = found.model_copy(update={"against": find_changes(comparison(), found)})
    page = Page(render(found, [pair(ATTACK)]))
    assert "script" not in page.tags
    assert page.text.count(ATTACK) >= 10
    assert not [value for name, value in page.attributes if name.startswith("on")]


def test_without_pictures_and_steps_it_says_so() -> None:
    page = Page(render(comparison(trajectories=(), pictures=(), outcome="unverified"), []))
    assert "No trajectory was run." in page.text
    assert "No picture was made." in page.text


def test_a_picture_that_is_missing_is_said() -> None:
    lost = picture(outcome="failed", psnr_db=None, ssim=None, candidate_verdict=None, reason="NaN")
    assert "no pictureNaN" in Page(render(comparison(pictures=(lost,)), [pair(candidate=False)])).text


def test_another_checkpoint_is_said_on_top() -> None:
    other = comparison().compared_with.model_copy(update={"mismatch": True, "name": "else"})
    said = "another checkpoint: the reference is else; the candidate was made from demo"
    assert said in Page(render(comparison(compared_with=other), [pair()])).text
    assert any(line.startswith(said) for line in table(comparison(compared_with=other)))
    assert "another checkpoint" not in Page(render(comparison(), [pair()])).text
    assert not any(line.startswith("another") for line in table(comparison()))


def test_what_moved_is_shown() -> None:
    found = failed().model_copy(update={"against": find_changes(comparison(), failed())})
    page = Page(render(found, [pair()]))
    assert "Since 2026-11-22T06:00:00Z" in page.text
    assert "worseunetoutcomepassedfailed" in page.text
    same = comparison().model_copy(update={"against": find_changes(comparison(), comparison())})
    assert "Nothing moved." in Page(render(same, [pair()])).text


def test_the_folder_holds_report_json_and_sheet(tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "one"
    path = write_report(folder, failed(), [pair()])
    assert path == folder / "report.html"
    assert sorted(each.name for each in folder.iterdir()) == ["comparison.json", "contact-sheet.png", "report.html"]
    assert read_comparison(folder / "comparison.json") == failed()
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.width == 768
    write_report(folder, comparison(), [pair()])
    assert json.loads((folder / "comparison.json").read_bytes())["outcome"] == "passed"


def test_no_contact_sheet_of_an_earlier_report_stays(tmp_path: Path) -> None:
    write_report(tmp_path, comparison(), [pair()])
    write_report(tmp_path, comparison(pictures=(), trajectories=()), [])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["comparison.json", "report.html"]


def test_words_that_begin_with_a_digit_wrap_and_numbers_do_not() -> None:
    words = "7 red circles in a row"
    text = render(comparison(trajectories=(trajectory(1e-6, 2e-5, prompt=words),)), [pair()])
    assert f"<td>{words}</td>" in text
    for number in ("2e-05", "1e-05<br><small>limit 0.001</small>", "0.9999990", "90.0 dB", "7"):
        assert f'<td class="number">{number}</td>' in text, number


def test_the_plot_is_xml_with_a_line_a_trajectory() -> None:
    tracks = [trajectory(1e-6 * (k + 1), 0.0, 1e-2, prompt=f"{k} {ATTACK}", seed=k) for k in range(8)]
    drawn = ElementTree.fromstring(error_plot(tracks))
    paths = drawn.findall("path")
    assert len(paths) == 8
    assert len(drawn.findall("circle")) == 24
    strokes = {(path.get("stroke"), path.get("stroke-dasharray")) for path in paths}
    assert len(strokes) == 8
    heights = [float(circle.get("cy", "nan")) for circle in drawn.findall("circle")[:3]]
    limit = float(drawn.findall("line[@class='limit']")[0].get("y1", "nan"))
    # Down is small: zero at the floor, 1e-6 above it, the limit of 1e-3 above that, 1e-2 on top.
    assert heights[1] > heights[0] > limit > heights[2]
    assert error_plot([]) == error_plot([trajectory().model_copy(update={"relative_l2": ()})]) == ""


def test_one_step_can_be_drawn() -> None:
    assert ElementTree.fromstring(error_plot([trajectory(1e-3)])).findall("path")


def test_the_terminal_says_the_same() -> None:
    found = failed()
    assert headline(found) == (
        "1 of 3 components passed, 1 failed, 1 unverified; 1 of 2 trajectories passed, 1 failed; "
        "0 of 1 picture passed, 1 failed"
    )
    assert [line.partition(":")[0] for line in failures(found)] == [
        "unet",
        "trajectory of 'a red circle', seed 7",
        "picture of 'a red circle', seed 7",
    ]
    assert unverified(found)[0] == "vae_decoder: needs an NVIDIA driver"
    assert unverified(found)[1].startswith("vae_decoder, a proxy only: torch fp16: passed, relative L2 0.0003;")
    lines = table(found)
    assert lines[1].split() == ["unet", "failed", "2.00e-03", "1.0e-03", "2.00e-03", "1.0e-02", "[0,", "1,", "2]"]
    assert "unet first departs at norm_7: node n7 (GroupNormalization) of down_blocks.0.norm1" in lines
    assert lines[-1] == f"failed: {headline(found)}"


def test_what_moved_is_said_in_as_many_lines_as_one_reads() -> None:
    earlier = comparison(components=(component("unet", output(1.0)),))
    lines = table(comparison().model_copy(update={"against": find_changes(earlier, comparison())}))
    assert "since 2026-11-22T06:00:00Z: 4 figures moved" in lines
    assert "  better: unet, early, batch 2, y: relative_l2 1 -> 1e-05" in lines
    before = comparison(environment={"python": "3.11"})
    after = comparison(environment={"python": "3.11", **{f"package {k}": "2" for k in range(30)}})
    lines = table(after.model_copy(update={"against": find_changes(before, after)}))
    assert lines[-2] == "  and 10 more; see the report or --json"
    assert len([line for line in lines if line.startswith("  other: environment")]) == 20
    same = comparison().model_copy(update={"against": find_changes(comparison(), comparison())})
    assert "since 2026-11-22T06:00:00Z: nothing moved" in table(same)


def test_the_worst_output_of_a_component_is_shown() -> None:
    cases = (output(1e-6), output(9e-4), output(1e-4))
    assert "9.00e-04" in table(comparison(components=(component("unet", *cases),)))[1]
    unmeasured = output(reason="shape").model_copy(update={"metrics": None, "outcome": "failed"})
    assert table(comparison(components=(component("unet", *cases, unmeasured),)))[1].split() == ["unet", "failed"]
