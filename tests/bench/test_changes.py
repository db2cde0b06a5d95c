from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.bench.changes import compare_benchmarks, read_bench
from sdrt.bench.schema import Bench
from sdrt.errors import ArtefactError
from sdrt.files import canonical_json
from tests.bench.results import bench, contender

BEFORE = [1.0, 1.02, 1.04]


def verdicts(before: Bench, after: Bench) -> dict[str, str]:
    return {move.figure: move.verdict for move in compare_benchmarks(before, after).moves}


def test_the_same_is_the_same() -> None:
    same = bench(contender("sdrt openvino bf16", BEFORE))
    assert set(verdicts(same, same).values()) == {"same"}
    assert compare_benchmarks(same, same).remarks == ()


def test_what_got_slower_by_more_than_its_spread_is_marked() -> None:
    before = bench(contender("sdrt openvino bf16", BEFORE))
    after = bench(contender("sdrt openvino bf16", [1.2 * value for value in BEFORE]))
    assert set(verdicts(before, after).values()) == {"slower"}
    assert set(verdicts(after, before).values()) == {"faster"}


def test_a_change_within_the_spread_is_not_marked() -> None:
    before = bench(contender("sdrt openvino bf16", [1.0, 1.2, 1.5]))
    after = bench(contender("sdrt openvino bf16", [1.2, 1.4, 1.7]))
    assert set(verdicts(before, after).values()) == {"same"}


def test_a_slower_machine_is_taken_out() -> None:
    before = bench(contender("sdrt openvino bf16", BEFORE), gflops=500)
    slow = [2 * value for value in BEFORE]
    after = bench(contender("sdrt openvino bf16", slow), gflops=250)
    (move, *_) = compare_benchmarks(before, after).moves
    assert (move.factor, move.adjusted) == pytest.approx((2, 1))
    assert move.verdict == "same"
    # The control: on a machine that is as fast as it was, it is the code that got slower.
    assert set(verdicts(before, bench(contender("sdrt openvino bf16", slow), gflops=500)).values()) == {"slower"}


def test_the_slower_come_first() -> None:
    before = bench(contender("sdrt openvino bf16", BEFORE), contender("sdrt onnxruntime fp32", BEFORE))
    after = bench(
        contender("sdrt openvino bf16", BEFORE), contender("sdrt onnxruntime fp32", [2 * value for value in BEFORE])
    )
    moves = compare_benchmarks(before, after).moves
    assert {move.contender for move in moves[:4]} == {"sdrt onnxruntime fp32"}
    assert [move.verdict for move in moves] == ["slower"] * 4 + ["same"] * 4


def test_what_only_one_has_is_left_out() -> None:
    before = bench(contender("sdrt openvino bf16", BEFORE))
    after = bench(contender("sdrt openvino bf16", BEFORE), contender("diffusers-bf16", BEFORE))
    assert {move.contender for move in compare_benchmarks(before, after).moves} == {"sdrt openvino bf16"}


def test_what_makes_two_hard_to_compare_is_said() -> None:
    one = contender("sdrt openvino bf16", BEFORE)
    before = bench(one)
    after = bench(
        one, machine={"processor": "another", "cpus": "2", "gpu": "none"}, versions={}, checkpoint_digest="ef" * 32
    )
    assert compare_benchmarks(before, after).remarks == (
        "processor is another; it was a processor",
        "the checkpoint has other weights",
        "numpy is missing; it was 2",
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    written = bench(contender("sdrt openvino bf16", BEFORE))
    path.write_bytes(canonical_json(written.model_dump(mode="json")))
    assert read_bench(path) == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not a JSON object"),
        ('{"schema_version": 2}', "has schema version 2; this sdrt reads up to 1"),
        ('{"schema_version": 1}', "sdrt: Field required"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ArtefactError, match=message):
        read_bench(path)
