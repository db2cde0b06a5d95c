"""Compose the whole guided LMS step as one graph around the exported UNet, sharing the UNet's weights file.

Nothing is exported again: the graph consists of the UNet's nodes with the step's arithmetic before and after them. The
step scales the latents, runs both halves of classifier-free guidance as one batch, combines them, computes the
derivative and adds the LMS sum, all in fp32 except for the UNet itself. Values that are equal for both halves are
computed once (`sdrt.export.shared_prefix`). The formulas are those of `sdrt.sampling.lms` and `sdrt.runtime.denoise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.artefacts.manifest import Component
from sdrt.errors import BundleError
from sdrt.export.shared_prefix import SharedPrefix, count_flops, first_axis, split_prefix
from sdrt.files import disk_errors
from sdrt.graphs.values import axes
from sdrt.sampling.lms import MAX_ORDER
from sdrt.sampling.noise_config import PredictionType

if TYPE_CHECKING:
    import onnx

DENOISE_STEP = "denoise_step.onnx"
#: Inputs of the step with one number per picture.
NUMBERS = ("timestep", "sigma", "guidance_scale")
#: Name of the batch axis of values with two rows per picture, one for each half.
ROWS = "rows"
#: Names of the UNet's inputs within the step, two rows per picture.
SAMPLE, TIMESTEP, STATES = "unet.sample", "unet.timestep", "unet.encoder_hidden_states"


def write_denoise_step(unet: Path, prediction_type: PredictionType) -> Path:
    """Write denoise_step.onnx beside the UNet's graph; it refers to the same weights file.

    Args:
        unet: The UNet's graph: inputs sample, timestep, encoder_hidden_states, output out_sample.
        prediction_type: What the UNet predicts; it is built into the graph.

    Returns:
        The path of the new graph.

    Raises:
        BundleError: The UNet's inputs or outputs have other names.
        ResourceError: The file cannot be written.
    """
    import onnx

    model = onnx.load(str(unet), load_external_data=False)
    compose(model, prediction_type)
    path = unet.with_name(DENOISE_STEP)
    with disk_errors(path):
        path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
    return path


def describe(unet: Component, step: Path) -> Component:
    """Return the step's record for the manifest.

    Its weights are the UNet's, and its FLOPs twice the UNet's less those that both halves share.

    Args:
        unet: The UNet's record.
        step: The step's graph, in the folder of the UNet's graph.
    """
    import onnx

    graph = onnx.load(str(step), load_external_data=False).graph
    once = {value.name for value in graph.value_info if first_axis(value) == "batch"}
    shared_flops = count_flops(graph, [node for node in graph.node if node.output[0] in once])
    path = PurePosixPath(unet.graph).with_name(step.name).as_posix()
    sample, _, states = unet.inputs
    latents = sample.model_copy(update={"name": "latents", "dtype": "float32"})
    number = sample.model_copy(update={"dtype": "float32", "shape": sample.shape[:1]})
    history = sample.model_copy(
        update={"name": "history", "dtype": "float32", "shape": (sample.shape[0], MAX_ORDER, *sample.shape[1:])}
    )
    inputs = (
        latents,
        *(states.model_copy(update={"name": name}) for name in ("uncond_states", "cond_states")),
        *(number.model_copy(update={"name": name}) for name in NUMBERS),
        number.model_copy(update={"name": "lms_coefficients", "shape": (*number.shape, MAX_ORDER)}),
        history,
    )
    outputs = tuple(spec.model_copy(update={"name": f"next_{spec.name}"}) for spec in (latents, history))
    flops = 2 * unet.flops - shared_flops
    return unet.model_copy(update={"graph": path, "inputs": inputs, "outputs": outputs, "flops": flops})


def compose(model: onnx.ModelProto, prediction_type: PredictionType) -> None:
    """Turn the UNet's model into the step's, in place: add nodes before and after it, replace inputs and outputs.

    Raises:
        BundleError: The UNet's inputs or outputs have other names.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    outputs = [value.name for value in graph.output]
    if set(inputs) != {"sample", "timestep", "encoder_hidden_states"} or outputs != ["out_sample"]:
        found = ", ".join([*inputs, *outputs])
        raise BundleError(
            f"the UNet's graph has unexpected inputs or outputs: {found}", hint="export the checkpoint again"
        )
    dtype = inputs["sample"].type.tensor_type.elem_type
    states = inputs["encoder_hidden_states"].type.tensor_type
    latent_shape = axes(inputs["sample"])[1:]
    _move_aside(graph)
    prefix = split_prefix(graph, sample=SAMPLE, timestep=TIMESTEP, states=STATES, batch="batch")
    step = _Step(latent_shape, dtype)
    step.before()
    before = len(step.nodes)
    step.double(prefix)
    doubled = len(step.nodes)
    step.after(prediction_type)
    _name_rows(graph, prefix)
    nodes = [*step.nodes[:before], *prefix.nodes, *step.nodes[before:doubled], *prefix.rest, *step.nodes[doubled:]]
    for field, values in (
        (graph.node, nodes),
        (graph.initializer, [*graph.initializer, *step.constants]),
        (graph.input, step.inputs(axes(inputs["encoder_hidden_states"])[1:], states.elem_type)),
        (graph.output, step.outputs()),
    ):
        kept = list(values)
        del field[:]
        field.extend(kept)
    graph.name = "denoise_step"


def _move_aside(graph: onnx.GraphProto) -> None:
    """Rename every value of the UNet whose name the step uses to "unet.<name>", in place."""
    taken = {"sample", "encoder_hidden_states", "out_sample", "latents", "uncond_states", "cond_states", *NUMBERS}
    taken |= {"lms_coefficients", "history", "next_latents", "next_history"}
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in taken:
                    names[index] = f"unet.{name}"
    for named in (*graph.initializer, *graph.value_info):
        if named.name in taken:
            named.name = f"unet.{named.name}"


def _name_rows(graph: onnx.GraphProto, prefix: SharedPrefix) -> None:
    """Rename the batch axis of values that are computed for both halves to `ROWS`, in place."""
    once = {name for node in prefix.nodes for name in node.output}
    for value in graph.value_info:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == "batch" and value.name not in once:
                axis.dim_param = ROWS


class _Step:
    """The step's nodes and constants; their names begin with "step.".

    Args:
        latent_shape: Shape of one picture's latents.
        dtype: The UNet's type, as a number of onnx.TensorProto.
    """

    def __init__(self, latent_shape: Sequence[int | str], dtype: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._latents = tuple(latent_shape)
        self._dtype = dtype
        # Inputs of the UNet that are equal for both halves -> the value with one row per picture.
        self._once = {TIMESTEP: "timestep"}

    def before(self) -> None:
        """Add the nodes before the UNet: x / sqrt(sigma^2 + 1), and the concatenated states of both halves."""
        import onnx

        sigma = self._column("sigma")
        self._node("Mul", [sigma, sigma], "variance_less_1")
        self._node("Add", ["step.variance_less_1", self._constant("one", np.float32(1))], "variance")
        self._node("Sqrt", ["step.variance"], "deviation")
        self._once[SAMPLE] = self._node("Div", ["latents", "step.deviation"], "scaled")
        if self._dtype != onnx.TensorProto.FLOAT:
            self._once[SAMPLE] = self._node("Cast", [self._once[SAMPLE]], "scaled_as_unet", to=self._dtype)
        self._node("Concat", ["uncond_states", "cond_states"], STATES, axis=0)

    def double(self, prefix: SharedPrefix) -> None:
        """Feed the prefix one row per picture, and add nodes that double its results for both halves."""
        both = {}
        for name in prefix.doubled:
            once = self._once.get(name, name)
            both[name] = self._node("Concat", [once, once], name if name in self._once else f"both.{name}", axis=0)
        for nodes, names in ((prefix.nodes, self._once), (prefix.rest, both)):
            for node in nodes:
                for index, name in enumerate(node.input):
                    node.input[index] = names.get(name, name)

    def after(self, prediction_type: PredictionType) -> None:
        """Add the nodes after the UNet: from its output to the next latents and history."""
        import onnx

        output = "unet.out_sample"
        if self._dtype != onnx.TensorProto.FLOAT:
            output = self._node("Cast", [output], "output", to=onnx.TensorProto.FLOAT)
        halves = self._node("Reshape", [output, self._constant("halves_shape", [2, -1, *self._latents])], "halves")
        uncond = self._node("Gather", [halves, self._constant("first", 0)], "uncond", axis=0)
        cond = self._node("Gather", [halves, self._constant("second", 1)], "cond", axis=0)
        difference = self._node("Sub", [cond, uncond], "difference")
        guidance = self._node("Mul", [self._column("guidance_scale"), difference], "guidance")
        slope = self._node("Add", [uncond, guidance], "guided")
        if prediction_type == "v_prediction":
            share = self._node("Div", [self._column("sigma"), "step.variance"], "latents_share")
            kept = self._node("Mul", ["latents", share], "latents_part")
            turned = self._node("Div", [slope, "step.deviation"], "output_part")
            slope = self._node("Add", [kept, turned], "derivative")
        axis = self._constant("history_axis", [1])
        newest = self._node("Unsqueeze", [slope, axis], "newest")
        start, end = self._constant("history_start", [0]), self._constant("history_end", [MAX_ORDER - 1])
        older = self._node("Slice", ["history", start, end, axis], "older")
        self._node("Concat", [newest, older], "next_history", axis=1)
        weights = self._column("lms_coefficients", MAX_ORDER)
        weighted = self._node("Mul", ["next_history", weights], "weighted")
        total = self._node("ReduceSum", [weighted, axis], "change", keepdims=0)
        self._node("Add", ["latents", total], "next_latents")

    def inputs(self, states: Sequence[int | str], states_dtype: int) -> list[onnx.ValueInfoProto]:
        """Return the step's inputs.

        Args:
            states: Shape of one picture's hidden states.
            states_dtype: Their type, as a number of onnx.TensorProto.
        """
        return [
            _value("latents", self._latents),
            _value("uncond_states", states, states_dtype),
            _value("cond_states", states, states_dtype),
            *(_value(name, ()) for name in NUMBERS),
            _value("lms_coefficients", (MAX_ORDER,)),
            _value("history", (MAX_ORDER, *self._latents)),
        ]

    def outputs(self) -> list[onnx.ValueInfoProto]:
        return [_value("next_latents", self._latents), _value("next_history", (MAX_ORDER, *self._latents))]

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node and return its output's name: "step.<output>", unless it belongs to the UNet or the contract."""
        import onnx

        name = output if output.startswith(("unet.", "next_")) else f"step.{output}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [name], name=f"step.node_{output}", **attributes))
        return name

    def _constant(self, name: str, value: Any) -> str:
        """Add an initializer unless it exists, and return its name; anything but float32 is stored as int64."""
        import onnx

        name = f"step.{name}"
        if name not in {constant.name for constant in self.constants}:
            array = np.asarray(value)
            array = array if array.dtype == np.float32 else array.astype(np.int64)
            self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _column(self, name: str, count: int = 1) -> str:
        """Reshape an input so that it broadcasts over latents (count 1) or a history of ``count``; return its name."""
        column = f"step.{name}_column"
        if column not in {output for node in self.nodes for output in node.output}:
            ones = [1] * len(self._latents)
            shape = self._constant(f"{name}_shape", [-1, *([count] if count > 1 else []), *ones])
            self._node("Reshape", [name, shape], f"{name}_column")
        return column


def _value(name: str, shape: Sequence[int | str], dtype: int = 1) -> onnx.ValueInfoProto:
    """Describe an input or output; ``shape`` leaves out the batch axis, and dtype 1 is float32."""
    import onnx

    return onnx.helper.make_tensor_value_info(name, dtype, ("batch", *shape))
