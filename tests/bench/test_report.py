from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from sdrt.bench.changes import compare_benchmarks
from sdrt.bench.report import lines, markdown, roofline, write_report
from sdrt.bench.schema import Bench, Build, ComponentBuild
from tests.bench.results import bench, contender, point, ratio

OURS = contender(
    "sdrt openvino bf16",
    [1.0, 1.1, 1.2],
    build=Build(
        export_s=20.0,
        build_s=5.0,
        components=(
            ComponentBuild(component="unet", precision="bf16", seconds=3.0, size_bytes=5 << 20, peak_memory_bytes=None),
        ),
    ),
)
PEER = contender("diffusers-bf16", [2.0, 2.2, 2.4], psnr_db=51.23)
ABSENT = contender("openvino-genai", [1.0], problem="it is not installed", remedy="pip install it", warm=(), cold=None)


def whole() -> Bench:
    return bench(
        OURS,
        PEER,
        ABSENT,
        ratios=(ratio(OURS, PEER),),
        points=(point(OURS.name, 300, 10**7), point(PEER.name, 100, 10**8)),
    )


def test_the_tables_hold_what_was_measured() -> None:
    text = markdown(whole())
    for words in (
        "| sdrt openvino bf16 | 1 | 1.100 (1.000 to 1.180) |",
        "| 51 dB |",
        "| sdrt openvino bf16 | diffusers-bf16 | 1 | whole request, warm | 2.00 | 2.00 to 2.00 | yes |",
        "| sdrt openvino bf16 | 20.0 | 5.0 |  | unet 3.0, 5 MiB |",
        "| sdrt openvino bf16 | unet | 1 | 1.0 | 300 | 60% | 100 |",
        "- openvino-genai: it is not installed (pip install it)",
        "bf16 500 GFLOP/s (500 to 500, torch); a copy 5.0 GB/s",
    ):
        assert words in text


def test_a_table_has_as_many_cells_in_every_row() -> None:
    tables = [block for block in markdown(whole()).split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_terminal_says_who_was_not_measured_and_what_got_slower() -> None:
    slow = whole().model_copy(update={"contenders": (contender(OURS.name, [2.0, 2.2, 2.4]),)})
    said = list(lines(slow.model_copy(update={"against": compare_benchmarks(whole(), slow)})))
    assert any(line.startswith("ratios (above 1, sdrt is faster)") for line in said)
    assert sum("SLOWER" in line for line in said) == 4
    assert not any("SLOWER" in line for line in lines(whole()))
    assert "openvino-genai was not measured: it is not installed (pip install it)" in list(lines(whole()))


def test_who_has_other_threads_is_said() -> None:
    tuned = contender("sdrt openvino bf16 tuned", [1.0], threads=1)
    said = "sdrt openvino bf16 tuned has 1 thread, as it was tuned."
    assert said in list(lines(bench(tuned, PEER)))
    assert f"\n{said}\n" in markdown(bench(tuned, PEER))
    assert "as it was tuned" not in markdown(whole())


def test_the_roofline_has_a_limit_and_every_component() -> None:
    root = ElementTree.fromstring(roofline(whole()))
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"limit, bf16", "sdrt openvino bf16, UNet", "diffusers-bf16, UNet", "Roofline of demo on 2 threads"} <= texts


def test_a_report_is_three_files(tmp_path: Path) -> None:
    written = write_report(tmp_path / "made" / "report", whole())
    assert [path.name for path in written] == ["bench.json", "bench.md", "roofline.svg"]
    assert Bench.model_validate_json(written[0].read_bytes()) == whole()
    assert json.loads(written[0].read_bytes())["schema_version"] == 1


def test_without_flops_there_is_no_roofline(tmp_path: Path) -> None:
    written = write_report(tmp_path, bench(OURS))
    assert [path.name for path in written] == ["bench.json", "bench.md"]
    assert "## Share" in written[1].read_text()
