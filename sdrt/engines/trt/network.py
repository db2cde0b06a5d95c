"""Parsing of an ONNX file into a strongly typed network; errors name the node, its operator and its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.manifest import TensorSpec
from sdrt.errors import BackendUnavailableError, EngineError
from sdrt.install_lines import requirement_line
from sdrt.libraries.tensorrt import Library
from sdrt.libraries.tensorrt_log import Messages

if TYPE_CHECKING:
    import tensorrt_rtx as rtx


@dataclass(frozen=True)
class Network:
    """A parsed network. The parser holds the weights, so it must live as long as the network."""

    definition: rtx.INetworkDefinition
    parser: rtx.OnnxParser


def check_onnx(path: Path) -> None:
    """Check that a file is a valid ONNX graph: TensorRT's parser reads garbage as an empty one.

    Raises:
        EngineError: The file is not a valid graph.
        BackendUnavailableError: onnx, which checks it, is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        hint = requirement_line("onnx", extra="rtx")
        raise BackendUnavailableError("onnx is needed to build plans and is not installed", hint=hint) from error

    try:
        # By path: models above 2 GB cannot be passed otherwise.
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        hint = "export the checkpoint again"
        raise EngineError(f"{path} is not a valid ONNX graph: {reason}", hint=hint) from error


def parse(trt: Library, builder: rtx.Builder, logger: rtx.ILogger, messages: Messages, path: Path) -> Network:
    """Parse an ONNX file and the weights beside it.

    Raises:
        EngineError: The file is not a valid graph, or TensorRT does not support it.
    """
    check_onnx(path)
    # The flag's number is 1 in TensorRT 10, 0 in 11 and in TensorRT-RTX.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flags)
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse_from_file(str(path)) or parser.num_errors:
        raise _parse_error(trt, [parser.get_error(index) for index in range(parser.num_errors)], messages, path)
    if definition.num_outputs == 0:
        raise EngineError(f"{path} has no outputs", hint="export the checkpoint again")
    return Network(definition, parser)


def objections(messages: Messages, inputs: Sequence[TensorSpec]) -> list[str]:
    """Return the parser's warnings, except for the advice to bind int64 to int64 inputs (docs/decisions/0035).

    Args:
        messages: Log of the parse.
        inputs: Inputs of the component: the runtime binds arrays of exactly these types.
    """
    heeded = [f"Make sure input {spec.name} has Int64 binding." for spec in inputs if spec.dtype == "int64"]
    return [warning for warning in messages.warnings if not warning.endswith(tuple(heeded))]


def _parse_error(trt: Library, errors: list[rtx.ParserError], messages: Messages, path: Path) -> EngineError:
    library = f"{trt.__name__} {trt.__version__}"
    of_nodes = [error for error in errors if error.node() >= 0]
    if not of_nodes:
        reason = errors[0].desc() if errors else messages.tail()
        return EngineError(f"{library} cannot parse {path}: {_line(reason)}", hint="export the checkpoint again")
    error = of_nodes[0]
    operator = error.node_operator()
    where = f"{path}: node {error.node_name() or error.node()} ({operator}{_inputs(path, error)})"
    if _is_unsupported(trt, error):
        hint = f"remove {operator} from the graph; graphs that sdrt exports at opset 23 do not need it"
        return EngineError(f"{where}: {library} has no operator {operator}", hint=hint)
    hint = "export the checkpoint again at opset 23; in a graph of your own, change this node"
    return EngineError(f"{where}: {library} refuses it: {_line(error.desc())}", hint=hint)


def _is_unsupported(trt: Library, error: rtx.ParserError) -> bool:
    """Return whether the operator is unknown: the parser reports that, or looks for a plugin of its name."""
    return error.code() == trt.ErrorCode.UNSUPPORTED_NODE or "Plugin not found" in error.desc()


def _inputs(path: Path, error: rtx.ParserError) -> str:
    """Return the names of a node's inputs as text, or "" if the node is not in the file's main graph."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    index = error.node()
    if index >= len(nodes) or nodes[index].op_type != error.node_operator():
        return ""
    return " of " + ", ".join(name for name in nodes[index].input if name)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
