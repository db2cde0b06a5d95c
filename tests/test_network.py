"""Network access happens only for Hub ids: every Python process of a command is watched.

tests/test_telemetry.py watches libraries below Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle

#: Records and refuses each attempt to look up or reach a host; child processes load this too.
WATCH = """
import os, sys
def watch(event, arguments):
    away = event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple))
    if away:
        with open(os.environ["SDRT_TEST_WATCHED"], "a") as file:
            file.write(f"{os.getpid()} {event} {arguments[-1]}\\n")
        raise PermissionError("the network is watched")
sys.addaudithook(watch)
with open(os.environ["SDRT_TEST_STARTED"], "a") as file:
    file.write(f"{os.getpid()}\\n")
"""


def run(folder: Path, *words: str | Path) -> tuple[int, list[str], int]:
    """Run sdrt in watched processes; return its exit code, the addresses it tried, and the number of processes."""
    (folder / "watch").mkdir(exist_ok=True)
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    reached, started = folder / "reached.txt", folder / "started.txt"
    for file in (reached, started):
        file.write_text("")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder / "watch"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "SDRT_TEST_WATCHED": str(reached),
        "SDRT_TEST_STARTED": str(started),
    }
    command = [sys.executable, "-m", "sdrt", *map(str, words)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return ended.returncode, reached.read_text().splitlines(), len(set(started.read_text().split()))


@pytest.mark.parametrize(
    "words",
    [
        (
            "denoise",
            "--bundle",
            "{bundle}",
            "--prompt",
            "a",
            "--steps",
            "1",
            "--store",
            "store",
            "--out",
            "picture.png",
        ),
        ("inspect", "demo"),
        ("inspect", "{bundle}"),
        ("doctor", "--store", "store"),
        ("store", "list", "--store", "store"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_commands_reach_for_no_network(words: tuple[str, ...], tiny_bundle: Bundle, tmp_path: Path) -> None:
    code, reached, watched = run(tmp_path, *(word.format(bundle=tiny_bundle.path) for word in words))
    assert code == 0
    assert reached == []
    # Building engines and validating graphs run in separate processes.
    assert watched > 1 if words[0] == "denoise" else watched >= 1


def test_a_hub_id_reaches_for_the_hub(tmp_path: Path) -> None:
    code, reached, _ = run(tmp_path, "inspect", "nobody/nothing-of-this-name", "--revision", "main")
    assert code == 3
    assert reached
