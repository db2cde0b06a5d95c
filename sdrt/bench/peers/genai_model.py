"""Conversion of a bundle to the folder that openvino-genai opens, as optimum-intel exports it from a checkpoint."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrt.libraries.openvino import core, load_library

if TYPE_CHECKING:
    import openvino

#: Component -> folder of its config in the checkpoint.
FOLDERS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae"}
#: openvino-genai has no LMS; at equal steps its UNet does the same work under any of its schedulers.
SCHEDULER = "EulerDiscreteScheduler"


def convert(checkpoint: Path, bundle: Path, folder: Path) -> None:
    """Write the folder: OpenVINO models of the bundle's graphs in fp32, and the tokenizer as a model.

    Args:
        checkpoint: Folder of the checkpoint in diffusers' layout, with configs and tokenizer.
        bundle: Folder of its fp32 bundle.
        folder: Empty folder to write to.
    """
    library = load_library()
    for component, configured in FOLDERS.items():
        model = core().read_model(bundle / component / "model.onnx")
        if component == "unet":
            _take_one_timestep(library, model)
        (folder / component).mkdir()
        library.save_model(model, folder / component / "openvino_model.xml", compress_to_fp16=False)
        shutil.copyfile(checkpoint / configured / "config.json", folder / component / "config.json")
    _write_tokenizer(library, checkpoint, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = json.loads((checkpoint / "scheduler/scheduler_config.json").read_bytes())
    scheduler |= {"_class_name": SCHEDULER, "timestep_spacing": "linspace"}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0"}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index["scheduler"] = ["diffusers", SCHEDULER]
    (folder / "model_index.json").write_text(json.dumps(index))


def _take_one_timestep(library: Any, model: openvino.Model) -> None:
    """Replace the UNet's timestep, float32 with one value a row, by int64 [1] for the whole batch."""
    operators = import_module("openvino.opset13")
    former = model.input("timestep").get_node()
    sample = model.input("sample").get_node()
    timestep = operators.parameter([-1], library.Type.i64, name="timestep")
    timestep.output(0).get_tensor().set_names({"timestep"})
    shape = operators.shape_of(sample)
    batch = operators.gather(shape, operators.constant([0], library.Type.i64), operators.constant(0))
    rows = operators.broadcast(operators.convert(timestep, "f32"), batch)
    for target in former.output(0).get_target_inputs():
        target.replace_source_output(rows.output(0))
    model.remove_parameter(former)
    model.add_parameters([timestep])
    model.validate_nodes_and_infer_types()


def _write_tokenizer(library: Any, checkpoint: Path, folder: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer", local_files_only=True)
    converters = import_module("openvino_tokenizers")
    forward, backward = converters.convert_tokenizer(tokenizer, with_detokenizer=True)
    folder.mkdir()
    library.save_model(forward, folder / "openvino_tokenizer.xml")
    library.save_model(backward, folder / "openvino_detokenizer.xml")
