"""``sdrt compare``: is what was built still the model?"""

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


#: Where in a report's folder tensors are saved.
TENSORS = "tensors"


@dataclass(frozen=True)
class Options:
    """The options of the command, by name."""

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
    help="The reference: a folder, a file, a Hub id, or demo.  [default: what it is from]",
)
@revision_option
@variant_option
@backend_option(("auto", *BACKENDS), "auto")
@precision_option(PRECISIONS)
@file_option("--prompts", "What to draw: lines of a prompt, or of SEED, a tab and a prompt.  [default: ours]")
@click.option(
    "--steps", type=Number(int, 1, MAX_STEPS), default=25, show_default=True, metavar="N", help="Denoising steps."
)
@file_option("--tolerances", "Tolerances that stand in place of ours, as TOML.")
@click.option("--bisect", is_flag=True, help="Find the first tensor that departs in a component that fails.")
@file_option("--against", "An earlier comparison.json: say what moved since.")
@output_folder_option("--report", "Write report.html, comparison.json and contact-sheet.png here.")
@click.option(
    "--save-tensors", is_flag=True, help="Add inputs and PyTorch's outputs to the report, for polygraphy run."
)
@click.option("--self-test", is_flag=True, help="Plant faults in the bundle's fp32 graphs; find each by ONNX Runtime.")
@click.option("--trust", metavar="DIGEST", help="SHA-256 of the manifest.json of ENGINES from elsewhere.")
@store_option
@threads_option
@json_option
def command(**values: Any) -> None:
    """Compare BUNDLE or ENGINES with the checkpoint they came from, as PyTorch computes it in fp32.

    Components on inputs of real runs, latents after each step, and pictures are held to tolerances. Without BUNDLE and
    ENGINES the engines of --checkpoint, or of the demo, are compared, and made when missing. Exits 0 when everything
    that can be verified here passes, 5 when a tolerance is broken, 4 when nothing can be verified.
    """
    run(Options(**values))


def run(options: Options) -> None:
    """Read what is to be read, compare, and say what was found."""
    if options.self_test:
        check_self_test(options)
    if options.save_tensors and options.report is None:
        raise UsageError("--save-tensors adds to the report, and none is asked for", hint="add --report DIR")
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

    asked, settings = _what(options), _how(options)
    progress = for_terminal()
    if options.self_test:
        _say_faults(check_faults(asked, settings, progress), options.as_json)
        return
    earlier = read_comparison(options.against) if options.against else None
    comparison, pairs = compare(asked, settings, progress)
    if earlier is not None:
        comparison = comparison.model_copy(update={"against": find_changes(earlier, comparison)})
    report = write_report(options.report, comparison, pairs) if options.report else None
    if options.report is not None and not options.save_tensors:
        # Beside a report lies what belongs to it, and not what an earlier one had.
        remove_tensors(options.report / TENSORS)
    if options.as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        for line in table(comparison):
            click.echo(printable(line))
        if report is not None:
            print_text(f"report: {report}")
    _end(comparison)


def check_self_test(options: Options) -> None:
    """Hold that nothing is asked of the self-test that it would not do.

    Raises:
        UsageError: An option of a comparison stands beside it.
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
    for name in (name for name, there in given.items() if there):
        hint = f"leave {name} out; it finds faults in a bundle's fp32 graphs as ONNX Runtime runs them, and says which"
        raise UsageError(f"--self-test does not go with {name}", hint=hint)


def _what(options: Options) -> SubjectRequest:
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


def _how(options: Options) -> ComparisonSettings:
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
    """Say which planted faults were found.

    Raises:
        NumericError: One was not, or another component was blamed for it.
    """
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
    missed = [each.name for each in found if not each.found or each.blamed_component != each.expected_component]
    for each in found if not as_json else ():
        blamed = f"blamed on {each.blamed_component}" if each.blamed_component else "blamed on nothing"
        said = "found" if each.name not in missed else "MISSED"
        click.echo(f"{each.name:30}{said:8}{blamed}; planted in {each.expected_component}")
    if missed:
        hint = "the comparison cannot be trusted to find such a fault; report this"
        raise NumericError(f"planted faults were missed: {', '.join(missed)}", hint=hint)


def _end(comparison: Comparison) -> None:
    """End as the outcome asks.

    Raises:
        NumericError: A tolerance is broken.
        BackendUnavailableError: Nothing could be verified.
    """
    from sdrt.compare.summary import headline

    if comparison.outcome == "failed":
        located = any(each.departure for each in comparison.components)
        hint = "see the lines above" if located else "--bisect finds where a component goes wrong"
        raise NumericError(f"what was built is not the model: {headline(comparison)}", hint=hint)
    if comparison.outcome == "unverified":
        hint = "compare on a machine that runs this backend"
        raise BackendUnavailableError(f"nothing could be verified here: {headline(comparison)}", hint=hint)
