"""Comparison of single components: the same inputs through PyTorch and the candidate, by Polygraphy's Comparator."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polygraphy.comparator import Comparator, IterationResult
from polygraphy.logger import G_LOGGER

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineComponent, EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.compare.inputs import Case, Inputs
from sdrt.compare.metrics import judge
from sdrt.compare.runners import Candidate, EngineRunner, TorchRunner, candidate
from sdrt.compare.schema import ComponentCase, ComponentResult, Outcome, OutputResult, ProxyResult, verdict
from sdrt.compare.tolerances import Tolerances
from sdrt.errors import BackendUnavailableError, NumericError, SdrtError
from sdrt.progress import Progress, silent
from sdrt.runtime.backends.registry import available

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

    from sdrt.compare.reference import Reference
    from sdrt.compare.schema import ToleranceRecord

#: Components in the order in which they need each other's outputs: if several fail, the first is blamed.
CAUSAL: tuple[ComponentName, ...] = ("text_encoder", "unet", "denoise_step", "vae_decoder", "vae_encoder")
IN_FP32 = "ONNX Runtime's CPU computes fp16 graphs in fp32: this shows the weights' rounding, not the arithmetic's"
IN_TORCH = "PyTorch in fp16 rounds every intermediate; the engine's kernels round elsewhere"


@dataclass(frozen=True)
class Judged:
    """A result in the form that Polygraphy expects: true if it passed.

    ``output1_name`` keeps Polygraphy from computing its own statistics, which fail on empty outputs.
    """

    result: OutputResult
    output1_name: str = ""

    def __bool__(self) -> bool:
        """Return whether it passed; unverified does not count as passed."""
        return self.result.outcome == "passed"


def compare_components(
    reference: Reference,
    source: EngineSet | Bundle | Candidate,
    inputs: Inputs,
    tolerances: Tolerances,
    progress: Progress = silent,
    *,
    components: Sequence[ComponentName] | None = None,
    bundle: Bundle | None = None,
    threads: int | None = None,
) -> tuple[ComponentResult, ...]:
    """Compare every component with the reference.

    Args:
        reference: The checkpoint in PyTorch.
        source: The engines, bundle or candidate to compare.
        inputs: Input cases of the components.
        tolerances: Table of limits.
        progress: Progress callback.
        components: Names of the components; None is all that the source holds.
        bundle: Bundle that the engines were built from. If they cannot run here its graphs are run instead, labelled
            as proxies.
        threads: Number of CPU threads of each component.

    Returns:
        One result per component, in causal order; unverified if the backend cannot run here.

    Raises:
        SdrtError: The engines do not open, or the checkpoint is malformed.
    """
    made = source if isinstance(source, Candidate) else candidate(source, threads=threads)
    names = [name for name in CAUSAL if name in (made.parts if components is None else components)]
    missing = unavailable(made)
    results = []
    with progress.stage("compare components", len(names)) as advance:
        for name in names:
            if name not in made.parts:
                results.append(_unverified(name, made, f"the engines hold no {name}"))
            elif missing:
                proxies = _proxies(reference, made, name, inputs, tolerances, bundle)
                results.append(_unverified(name, made, missing, proxies))
            else:
                results.append(_compare(reference, made, name, inputs, tolerances))
            advance(1)
    return tuple(results)


def blamed(results: Iterable[ComponentResult]) -> ComponentName | None:
    """Return the first component, in causal order, that failed; None if none did."""
    failed = {result.component for result in results if result.outcome == "failed"}
    return next((name for name in CAUSAL if name in failed), None)


def unavailable(made: Candidate) -> str:
    """Return the reason why a candidate's backend cannot run here; "" if it can."""
    try:
        available(made.backend)
    except BackendUnavailableError as error:
        return error.message
    return ""


def _compare(
    reference: Reference, made: Candidate, name: ComponentName, inputs: Inputs, tolerances: Tolerances
) -> ComponentResult:
    part = made.parts[name]
    cases = inputs.cases(name, part.batch)
    if not cases:
        return _unverified(name, made, "it is not run without guidance")
    tolerance = tolerances.of(name, made.backend, part.precision)
    broken = _broken_contract(part, cases[0])
    if broken:
        return _result(name, made, "failed", broken, ())
    runners = [TorchRunner(reference, name, cases[0].feeds), EngineRunner(made, name, reference.model.scaling_factor)]
    compared = run_comparison(runners, cases, tolerance)
    outcome = verdict(output.outcome for case in compared for output in case.outputs)
    return _result(name, made, outcome, first_reason(compared, outcome), compared)


def run_comparison(
    runners: Sequence[BaseRunner], cases: Sequence[Case], tolerance: ToleranceRecord | None
) -> tuple[ComponentCase, ...]:
    """Run the reference's runner and the candidate's on every case, and judge every output.

    Polygraphy runs one after the other, so that only one network is in memory.

    Raises:
        NumericError: Polygraphy did not compare every case, or compared no output of one.
    """

    def compare(expected: IterationResult, actual: IterationResult) -> OrderedDict[str, Judged]:
        return OrderedDict((name, Judged(result)) for name, result in _judge_all(expected, actual, tolerance).items())

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        ran = Comparator.run(list(runners), data_loader=[case.feeds for case in cases])
        (accuracy,) = Comparator.compare_accuracy(ran, compare_func=compare)
    (rows,) = accuracy.values()
    # Polygraphy compares the outputs that both sides have; if there are none, it reports a pass.
    if len(rows) != len(cases) or not all(rows):
        message = f"polygraphy compared outputs of {sum(map(bool, rows))} of {len(cases)} cases"
        raise NumericError(message, hint="the engine has no outputs of the contract; build it again, or report this")
    return tuple(
        ComponentCase(label=case.label, batch=case.batch, outputs=tuple(judged.result for judged in row.values()))
        for case, row in zip(cases, rows, strict=True)
    )


def _judge_all(
    expected: Mapping[str, object], actual: Mapping[str, object], tolerance: ToleranceRecord | None
) -> dict[str, OutputResult]:
    """Judge every output of either side; an output that only one side has fails."""
    results = {}
    for name in dict.fromkeys([*expected, *actual]):
        if name in expected and name in actual:
            results[name] = judge(name, actual[name], expected[name], tolerance)  # type: ignore[arg-type]
            continue
        reason = "the candidate has no such output" if name in expected else "the reference has no such output"
        results[name] = OutputResult(output=name, metrics=None, tolerance=tolerance, outcome="failed", reason=reason)
    return results


def first_reason(cases: Iterable[ComponentCase], outcome: Outcome) -> str:
    """Return the first output with this outcome and its reason; "" if the outcome is passed."""
    if outcome == "passed":
        return ""
    for case in cases:
        for output in case.outputs:
            if output.outcome == outcome:
                return f"{case.label}: {output.output}: {output.reason}"
    return ""


def _broken_contract(part: EngineComponent, case: Case) -> str:
    """Return the difference between a candidate's inputs and the contract's; "" if there is none.

    Polygraphy would rename, cast and reshape inputs to fit.
    """
    found = {spec.name: tuple(spec.shape[1:]) for spec in part.inputs}
    wanted = {name: array.shape[1:] for name, array in case.feeds.items()}
    if found != wanted:
        return f"its inputs are {found}; the contract says {wanted}"
    return ""


def _result(
    name: ComponentName,
    made: Candidate,
    outcome: Outcome,
    reason: str,
    cases: tuple[ComponentCase, ...],
    proxies: tuple[ProxyResult, ...] = (),
) -> ComponentResult:
    precision = made.parts[name].precision if name in made.parts else made.precision
    return ComponentResult(
        component=name,
        backend=made.backend,
        precision=precision,
        outcome=outcome,
        reason=reason,
        cases=cases,
        proxies=proxies,
    )


def _unverified(
    name: ComponentName, made: Candidate, reason: str, proxies: tuple[ProxyResult, ...] = ()
) -> ComponentResult:
    return _result(name, made, "unverified", reason, (), proxies)


def _proxies(
    reference: Reference,
    made: Candidate,
    name: ComponentName,
    inputs: Inputs,
    tolerances: Tolerances,
    bundle: Bundle | None,
) -> tuple[ProxyResult, ...]:
    """Run stand-ins for an engine that cannot run here: PyTorch in half precision, and the bundle's own graph."""
    # One case: half precision in PyTorch is slow on a CPU, and a stand-in shows a magnitude, not a verdict.
    cases = inputs.cases(name, None)[:1]
    if not cases:
        return ()
    proxies = []
    precision = made.parts[name].precision
    if precision == "fp16":
        half = TorchRunner(reference, name, cases[0].feeds, "fp16")
        runners: list[BaseRunner] = [TorchRunner(reference, name, cases[0].feeds), half]
        proxies.append(_proxy("torch fp16", IN_TORCH, runners, cases, tolerances.of(name, "torch", "fp16")))
    if bundle is not None and name in bundle.manifest.components:
        graphs = candidate(bundle)
        part = graphs.parts[name]
        engine = EngineRunner(graphs, name, reference.model.scaling_factor)
        runners = [TorchRunner(reference, name, cases[0].feeds), engine]
        label = f"the bundle's {part.precision} graph on ONNX Runtime"
        note = IN_FP32 if part.precision == "fp16" else "the graph as exported, before the backend compiled it"
        proxies.append(_proxy(label, note, runners, cases, tolerances.of(name, "onnxruntime", part.precision)))
    return tuple(proxies)


def _proxy(
    label: str, note: str, runners: Sequence[BaseRunner], cases: Sequence[Case], tolerance: ToleranceRecord | None
) -> ProxyResult:
    try:
        compared = run_comparison(runners, cases, tolerance)
    except SdrtError as error:
        # If the stand-in cannot run either, the component stays unverified.
        return ProxyResult(label=label, note=f"{note}; it did not run: {error.message}", outcome="unverified", cases=())
    outcome = verdict(output.outcome for case in compared for output in case.outputs)
    return ProxyResult(label=label, note=note, outcome=outcome, cases=compared)
