"""Opening a comparison's subject, and notes on the parts it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import COMPONENTS, DEEPCACHE, ComponentName
from sdrt.compare.subject import SubjectRequest, open_subject
from tests.doubles.progress import Notes


@pytest.mark.parametrize(
    ("components", "said"),
    [(COMPONENTS, []), (("text_encoder", *DEEPCACHE), ["DeepCache's passes are not compared one by one"])],
)
def test_passes_of_deepcache_are_said_to_be_left_out(
    components: tuple[ComponentName, ...], said: list[str], hand_sets: Callable[..., EngineSet], tmp_path: Path
) -> None:
    engines, notes = hand_sets(components=components), Notes()
    asked = SubjectRequest(folder=engines.path, checkpoint="demo", trust=engines.digest, store=tmp_path / "store")
    subject = open_subject(asked, notes)
    assert set(subject.made.parts) == set(components)
    assert [note.partition(";")[0] for note in notes.notes] == said
