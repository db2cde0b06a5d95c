"""Look up known vulnerabilities of the pinned packages with pip-audit; part of ``make check``.

Vulnerabilities fail the check; a look-up that is impossible is reported and does not. pip-audit is installed into an
environment of its own in build/, and looks up each set of pins once a day.
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
#: pip-audit's last answer, used again while it is fresh.
ANSWER = FOLDER / "answer.json"
FRESH_S = 24 * 3600.0
INSTALL_TIMEOUT_S = 300
ANSWER_TIMEOUT_S = 600


class UnreachableError(Exception):
    """The look-up is impossible; the message gives the reason in one line."""


def answer(pins: str, client: list[str]) -> list[dict[str, Any]]:
    """Return pip-audit's entry for each pin.

    Args:
        pins: Lines ``name==version``.
        client: Command line of pip-audit.

    Raises:
        UnreachableError: pip-audit gave no answer.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    listed, report = FOLDER / "pins.txt", FOLDER / "vulnerabilities.json"
    listed.write_text(pins)
    report.unlink(missing_ok=True)
    words = [*client, "-r", str(listed), "--no-deps", "--disable-pip", "--format", "json", "--output", str(report)]
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnreachableError("pip-audit got no answer in time") from error
    # pip-audit exits with 1 both if it found something and if it failed; only a failure leaves no file.
    if not report.exists():
        raise UnreachableError((ended.stderr.strip().splitlines() or ["pip-audit gave no answer"])[-1][:200])
    found: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
    return found


def judge(found: list[dict[str, Any]]) -> tuple[list[str], int, int]:
    """Return a line for each vulnerability, and the numbers of packages that were looked up and that were not."""
    lines = []
    for package in found:
        for each in package.get("vulns", []):
            fixed = ", ".join(each["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {each['id']}, fixed in {fixed}")
    skipped = sum("skip_reason" in package for package in found)
    return lines, len(found) - skipped, skipped


def installed_client() -> list[str]:
    """Return the command line of pip-audit in its own environment, which is created if missing.

    Raises:
        UnreachableError: pip-audit cannot be installed.
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
    """Return the saved answer for these pins if it is fresh; else None."""
    try:
        kept = json.loads(ANSWER.read_text())
    except (OSError, ValueError):
        return None
    fresh = kept["pins"] == pins and 0 <= time.time() - kept["at"] < FRESH_S
    return kept["found"] if fresh else None


def ask(client: list[str] | None = None) -> list[dict[str, Any]]:
    """Look up all pins.

    One pin is looked up first: if the index has no entry for it, it will have none for the others.

    Raises:
        UnreachableError: The index has no vulnerability data.
    """
    lines = [f"{name}=={version}\n" for name, version in pinned().items()]
    pins = "".join(lines)
    found = remembered(pins)
    if found is not None:
        return found
    client = installed_client() if client is None else client
    if judge(answer(lines[0], client))[1] == 0:
        raise UnreachableError("the package index used here has no vulnerability data")
    found = answer(pins, client)
    ANSWER.write_text(json.dumps({"pins": pins, "at": time.time(), "found": found}))
    return found


def main() -> int:
    """Print the known vulnerabilities; return 1 if there are any."""
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
