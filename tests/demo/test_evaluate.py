"""Evaluation results: shares with their intervals, and changes since another evaluation of the same captions."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from demo.evaluate import Result, changes, earlier, evaluate, paired, wilson, write
from sdrt.compare.scorer import Verdict

RIGHT = Verdict(**dict.fromkeys(Verdict.__dataclass_fields__, True))
WRONG = Verdict(**{**dict.fromkeys(Verdict.__dataclass_fields__, True), "shape": False})


def results(single: str, pairs: str) -> list[Result]:
    """Build one result a letter: r is right, w is not."""
    letters = [(letter, 1) for letter in single] + [(letter, 2) for letter in pairs]
    verdicts = {"r": RIGHT, "w": WRONG}
    return [Result(f"caption {k}", k, objects, verdicts[letter]) for k, (letter, objects) in enumerate(letters)]


@pytest.mark.parametrize(
    ("right", "count", "interval"),
    # Brown, Cai and DasGupta's formula by hand: (0.5, 10) is 0.5 +- 0.2634; none and all keep half of theirs.
    [(5, 10, (0.2366, 0.7634)), (0, 100, (0.0, 0.0370)), (100, 100, (0.9630, 1.0))],
)
def test_a_share_has_wilson_s_interval(right: int, count: int, interval: tuple[float, float]) -> None:
    assert wilson(right, count) == pytest.approx(interval, abs=1e-4)


def test_a_change_is_told_pair_by_pair() -> None:
    change, low, high = paired(10, 4, 200)
    assert change == pytest.approx(-0.03)
    # (4.5 - 10.5) / 202 +- 1.96 sqrt(15 - 36 / 202) / 202.
    assert (low, high) == pytest.approx((-0.0671, 0.0077), abs=1e-4)
    # As many won as lost: the change is 0, and its interval contains 0.
    assert paired(4, 4, 200)[0] == 0
    assert paired(4, 4, 200)[1] < 0 < paired(4, 4, 200)[2]


def test_what_changed_since_an_evaluation(tmp_path: Path) -> None:
    before = [result.verdict.right for result in results("rrrw", "rwww")]
    rows = changes(results("rrww", "rrww"), before).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[2:]]
    assert [cell[:4] for cell in cells] == [
        ["one object", "75.0%", "1", "0"],
        ["two objects", "25.0%", "0", "1"],
        ["all", "50.0%", "1", "1"],
    ]
    assert [cell[4].split()[0] for cell in cells] == ["-25.0", "+25.0", "+0.0"]
    write(tmp_path, results("rrww", "rrww"), [Image.new("RGB", (16, 16))] * 8, {"seconds": 1.0}, "\n".join(rows))
    assert rows[-1] in (tmp_path / "evaluation.md").read_text()


def test_an_earlier_evaluation_is_of_the_same_captions(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (512, 512), "white")]
    found, _, _ = evaluate(lambda prompts, seed: pictures * len(prompts), 6)
    write(tmp_path, found, pictures * 6, {})
    # No blank picture matches its caption.
    assert earlier(tmp_path / "evaluation.json", 6) == [False] * 6
    with pytest.raises(ValueError, match="has other captions or seeds"):
        earlier(tmp_path / "evaluation.json", 8)
