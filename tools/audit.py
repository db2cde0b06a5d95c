"""Ask for known vulnerabilities of the pinned packages, by pip-audit; part of ``make check``.

What cannot be asked does not fail a check, and is said; what is found does. pip-audit has an environment of its own in
build/, so that its packages are none of ours, and is asked about each set of pins once a day.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from tools.requirements import CONSTRAINTS, ROOT, pinned

VERSION = "2.10.1"
FOLDER = ROOT / "build" / "audit"
#: pip-audit's answer about the pins, kept as long as it is fresh.
ANSWER = FOLDER / "answer.json"
FRESH_S = 24 * 3600.0
INSTALL_TIMEOUT_S = 300
ANSWER_TIMEOUT_S = 600


class UnreachableError(Exception):
    """Nobody could be asked; the message says why, in one line."""


def answer(pins: str, client: list[str]) -> list[dict[str, Any]]:
    """What pip-audit says of each pin.

    Args:
        pins: Lines ``name==version``.
        client: How pip-audit is called.

    Raises:
        UnreachableError: It gave no answer.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    asked, told = FOLDER / "asked.txt", FOLDER / "told.json"
    asked.write_text(pins)
    told.unlink(missing_ok=True)
    words = [*client, "-r", str(asked), "--no-deps", "--disable-pip", "--format", "json", "--output", str(told)]
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnreachableError("pip-audit got no answer in time") from error
    # It ends with 1 both where it found something and where it could not ask; only then is there no answer.
    if not told.exists():
        raise UnreachableError((ended.stderr.strip().splitlines() or ["pip-audit gave no answer"])[-1][:200])
    found: list[dict[str, Any]] = json.loads(told.read_text())["dependencies"]
    return found


def judge(found: list[dict[str, Any]]) -> tuple[list[str], int, int]:
    """A line for each vulnerability; how many packages are known where it was asked, and how many are not."""
    lines = []
    for package in found:
        for each in package.get("vulns", []):
            fixed = ", ".join(each["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {each['id']}, fixed in {fixed}")
    skipped = sum("skip_reason" in package for package in found)
    return lines, len(found) - skipped, skipped


def installed_client() -> list[str]:
    """pip-audit in its own environment, which is made when absent.

    Raises:
        UnreachableError: It cannot be installed.
    """
    python, ready = FOLDER / "venv" / "bin" / "python", FOLDER / f"ready-{VERSION}"
    if not ready.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--retries", "1", "--constraint", str(CONSTRAINTS)]
        try:
            for words in ([sys.executable, "-m", "venv", str(FOLDER / "venv")], [*pip, f"pip-audit=={VERSION}"]):
                subprocess.run(words, capture_output=True, timeout=INSTALL_TIMEOUT_S, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise UnreachableError("pip-audit cannot be installed here") from error
        ready.touch()
    return [str(python), "-m", "pip_audit", "--progress-spinner", "off"]


def remembered(pins: str) -> list[dict[str, Any]] | None:
    """The answer about these pins, if it is fresh."""
    try:
        kept = json.loads(ANSWER.read_text())
    except (OSError, ValueError):
        return None
    fresh = kept["pins"] == pins and 0 <= time.time() - kept["at"] < FRESH_S
    return kept["found"] if fresh else None


def ask(client: list[str] | None = None) -> list[dict[str, Any]]:
    """What is known of all pins.

    One is asked for first: where that one is not known, others would not be either.

    Raises:
        UnreachableError: Nothing is known.
    """
    lines = [f"{name}=={version}\n" for name, version in pinned().items()]
    pins = "".join(lines)
    found = remembered(pins)
    if found is not None:
        return found
    client = installed_client() if client is None else client
    if judge(answer(lines[0], client))[1] == 0:
        raise UnreachableError("the package index that is asked here knows of no vulnerabilities at all")
    found = answer(pins, client)
    ANSWER.write_text(json.dumps({"pins": pins, "at": time.time(), "found": found}))
    return found


def main() -> int:
    """Ask and say; 1 where something is known."""
    try:
        vulnerable, known, skipped = judge(ask())
    except UnreachableError as error:
        print(f"audit: not done: {error}")
        return 0
    for line in vulnerable:
        print(f"audit: {line}")
    print(f"audit: {len(vulnerable)} known vulnerabilities in {known} packages; {skipped} could not be looked up")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
