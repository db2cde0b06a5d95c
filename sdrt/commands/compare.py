"""The command ``sdrt compare``: compare a bundle or engines with the checkpoint in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdrt.commands.options import (
    BACKENDS,
    PRECISIONS,
    Number,
    backend_option,
    file_option,
    json_option,
    output_folder_option,
    precision_option,
    print_json,
    print_text,
    revision_option,
    store_option,
    threads_option,
    variant_option,
)
from sdrt.commands.paths import InputName, InputPath
from sdrt.errors import BackendUnavailableError, NumericError, UsageError
from sdrt.install_lines import extra_line
from sdrt.limits import MAX_STEPS
from sdrt.terminal import printable

if TYPE_CHECKING:
    from sdrt.artefacts.manifest import Precision
    from sdrt.compare.compare import ComparisonSettings
    from sdrt.compare.schema import Comparison
    from sdrt.compare.subject import SubjectRequest


#: Folder within a report's folder that tensors are saved to.
TENSORS = "tensors"


@dataclass(frozen=True)
class CompareOptions:
    """The options of ``sdrt compare``, by the names that click gives them."""

    folder: Path | None
    checkpoint: str | None
    revision: str | None
    variant: str | None
    backend: str
    precision: Precision | None
    prompts: Path | None
    steps: int
    tolerances: Path | None
    bisect: bool
    against: Path | None
    report: Path | None
    save_tensors: bool
    self_test: bool
    trust: str | None
    store: Path | None
    threads: int | None
    as_json: bool


@click.command("compare")
@click.argument("folder", required=False, type=InputPath(folder=True), metavar="[BUNDLE|ENGINES]")
@click.option(
    "--checkpoint",
    type=InputName(),
    metavar="C",
    help="Reference: a folder, a .safetensors file, a Hub id or demo.  [default: the one it was made from]",
)
@revision_option
@variant_option
@backend_option(("auto", *BACKENDS), "auto")
@precision_option(PRECISIONS)
@file_option("--prompts", "File of prompts, a line each: PROMPT, or SEED, a tab and PROMPT.  [default: built in]")
@click.option(
    "--steps",
    type=Number(int, 1, MAX_STEPS),
    default=25,
    show_default=True,
    metavar="N",
    help="Number of denoising steps.",
)
@file_option("--tolerances", "TOML file of tolerances that override the built-in ones.")
@click.option("--bisect", is_flag=True, help="Find the first tensor that deviates in each component that fails.")
@file_option("--against", "Earlier comparison.json; show what changed since.")
@output_folder_option("--report", "Write report.html, comparison.json and contact-sheet.png to this folder.")
@click.option(
    "--save-tensors", is_flag=True, help="Add inputs and reference outputs to the report, for polygraphy run."
)
@click.option(
    "--self-test",
    is_flag=True,
    help="Check that faults planted in the bundle's fp32 graphs are detected, on ONNX Runtime.",
)
@click.option("--trust", metavar="DIGEST", help="Trust ENGINES if its manifest.json has this SHA-256.")
@store_option
@threads_option
@json_option
def command(**values: Any) -> None:
    """Compare BUNDLE or ENGINES with the checkpoint that they were made from, run by PyTorch in fp32.

    Components on inputs from real runs, latents after each step, and pictures must stay within tolerances. Without
    BUNDLE or ENGINES, the engines of --checkpoint (or of the demo) are compared, and built if missing.

    Exit codes: 0 if everything that can be verified here passes, 5 if a tolerance is exceeded, 4 if nothing can be
    verified.
    """
    run(CompareOptions(**values))


def run(options: CompareOptions) -> None:
    """Run the comparison, print it and write its report; raise if it does not pass."""
    if options.self_test:
        check_self_test(options)
    if options.save_tensors and options.report is None:
        raise UsageError("--save-tensors is for --report, which is missing", hint="add --report DIR")
    try:
        from sdrt.compare.compare import check_faults, compare
    except ModuleNotFoundError as error:
        hint = extra_line("cpu", "export", "compare")
        raise BackendUnavailableError(f"{error.name} is needed to compare and is not installed", hint=hint) from error
    from sdrt.compare.changes import find_changes, read_comparison
    from sdrt.compare.report import write_report
    from sdrt.compare.summary import table
    from sdrt.compare.tensors import remove_tensors
    from sdrt.progress import for_terminal

    request, settings = _subject_request(options), _settings(options)
    progress = for_terminal()
    if options.self_test:
        _say_faults(check_faults(request, settings, progress), options.as_json)
        return
    earlier = read_comparison(options.against) if options.against else None
    comparison, pairs = compare(request, settings, progress)
    if earlier is not None:
        comparison = comparison.model_copy(update={"against": find_changes(earlier, comparison)})
    report = write_report(options.report, comparison, pairs) if options.report else None
    if options.report is not None and not options.save_tensors:
        # Tensors that an earlier report left would not belong to this one.
        remove_tensors(options.report / TENSORS)
    if options.as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        for line in table(comparison):
            click.echo(printable(line))
        if report is not None:
            print_text(f"report: {report}")
    _end(comparison)


def check_self_test(options: CompareOptions) -> None:
    """Raise UsageError if an option is given that --self-test does not use.

    Raises:
        UsageError: One is; the message names it.
    """
    given = {
        "--backend": options.backend not in ("auto", "onnxruntime"),
        "--precision": options.precision not in (None, "fp32"),
        "--bisect": options.bisect,
        "--against": options.against is not None,
        "--report": options.report is not None,
        "--save-tensors": options.save_tensors,
        "--trust": options.trust is not None,
        "--threads": options.threads is not None,
    }
    for name in (name for name, is_given in given.items() if is_given):
        hint = f"leave {name} out; the self-test runs a bundle's fp32 graphs on ONNX Runtime"
        raise UsageError(f"--self-test does not go with {name}", hint=hint)


def _subject_request(options: CompareOptions) -> SubjectRequest:
    from sdrt.compare.subject import SubjectRequest

    return SubjectRequest(
        options.folder,
        options.checkpoint,
        options.revision,
        options.variant,
        options.backend,
        options.precision,
        options.trust,
        options.store,
    )


def _settings(options: CompareOptions) -> ComparisonSettings:
    from sdrt.compare.compare import ComparisonSettings
    from sdrt.compare.prompts import read_prompts
    from sdrt.compare.tolerances import load

    return ComparisonSettings(
        load(options.tolerances),
        read_prompts(options.prompts) if options.prompts else None,
        options.steps,
        options.bisect,
        options.threads,
        options.report / TENSORS if options.report and options.save_tensors else None,
    )


def _say_faults(found: tuple[Any, ...], as_json: bool) -> None:
    """Print which planted faults were found.

    Raises:
        NumericError: A fault was missed, or another component was blamed for it.
    """
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
    missed = [each.name for each in found if not each.found or each.blamed_component != each.expected_component]
    for each in found if not as_json else ():
        blamed = f"blamed on {each.blamed_component}" if each.blamed_component else "blamed on nothing"
        said = "found" if each.name not in missed else "MISSED"
        click.echo(f"{each.name:30}{said:8}{blamed}; planted in {each.expected_component}")
    if missed:
        hint = "the comparison may miss such faults; please report this"
        raise NumericError(f"planted faults were missed: {', '.join(missed)}", hint=hint)


def _end(comparison: Comparison) -> None:
    """Raise the error that the outcome calls for, if any.

    Raises:
        NumericError: A tolerance is exceeded.
        BackendUnavailableError: Nothing could be verified.
    """
    from sdrt.compare.summary import headline

    if comparison.outcome == "failed":
        located = any(each.departure for each in comparison.components)
        hint = "see the lines above" if located else "--bisect finds where a component goes wrong"
        raise NumericError(f"the comparison failed: {headline(comparison)}", hint=hint)
    if comparison.outcome == "unverified":
        hint = "compare on a machine that runs this backend"
        raise BackendUnavailableError(f"nothing could be verified here: {headline(comparison)}", hint=hint)
