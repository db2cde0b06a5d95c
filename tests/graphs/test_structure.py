"""Requirements of a bundle's graph; rows 11 to 19 of the fault matrix are in tests/attacks."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sdrt.errors import SdrtError
from sdrt.graphs import structure
from sdrt.graphs.structure import check_structure, differing
from tests.graphs.models import EXPECTED, Change, far, sound, write


def refusal(path: Path) -> SdrtError:
    with pytest.raises(SdrtError) as caught:
        check_structure(path, EXPECTED)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_sound_graph_passes(tmp_path: Path) -> None:
    path = write(tmp_path)
    check_structure(path, EXPECTED)
    check_structure(path)
    onnx.checker.check_model(str(path), full_check=True)


def _subgraph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["sample"], ["x"], then_branch=branch, else_branch=branch))


def _tensor(**fields: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        for name, value in fields.items():
            tensor.ClearField(name)
            if isinstance(value, list):
                getattr(tensor, name).extend(value)
            elif value is not None:
                setattr(tensor, name, value)

    return change


def _constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="inside", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.ClearField("graph"), "holds no graph"),
        (lambda m: m.graph.ClearField("node"), "holds no graph"),
        (lambda m: m.training_info.add(), "training_info"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse weights"),
        (_subgraph, "has g in attribute 'else_branch' of a 'If'"),
        (lambda m: m.graph.node[0].attribute.add(name="a", ref_attr_name="b"), "has ref_attr_name in attribute 'a'"),
        (_constant, "an attribute's outside"),
        (_tensor(raw_data=bytes(63)), "63 bytes where its shape takes 64"),
        (_tensor(raw_data=None), "0 numbers where its shape takes 16"),
        (_tensor(raw_data=None, float_data=[0.0] * 15), "15 numbers where its shape takes 16"),
        (_tensor(float_data=[0.0] * 16), "its numbers twice"),
        (_tensor(dims=[1 << 62, 1 << 62]), "64 bytes where its shape takes"),
        (_tensor(dims=[-4, -4]), "or a negative size"),
        (_tensor(dims=[1] * 17), "17 axes"),
        (_tensor(data_type=TensorProto.STRING), "data type 8"),
        (_tensor(data_type=TensorProto.UNDEFINED), "data type 0"),
        (_tensor(string_data=[b"a"]), "a segment or text"),
        (
            lambda m: m.graph.initializer[0].external_data.add(key="location", value="x"),
            "in the graph and that it is not",
        ),
        (lambda m: setattr(far(m), "raw_data", bytes(64)), "both in the graph and outside"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "absent"), "uses 'absent' before it is computed"),
        (lambda m: m.graph.output.add(name="absent"), "has output 'absent', which no node computes"),
        (lambda m: m.graph.input.add(name="near"), "has two values named 'near'"),
        (lambda m: m.graph.input.add(), "or one without a name"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "computes 'hidden' twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_graph_of_ours_is_refused(change: Change, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(write(tmp_path, change)).message


def test_numbers_in_their_own_fields_are_counted(tmp_path: Path) -> None:
    check_structure(write(tmp_path, _tensor(raw_data=None, float_data=[0.5] * 16)), EXPECTED)


def test_a_tensor_of_nothing_needs_no_bytes(tmp_path: Path) -> None:
    def empty(model: onnx.ModelProto) -> None:
        model.graph.initializer.add(name="nothing", data_type=1, dims=[0, 4])

    check_structure(write(tmp_path, empty), EXPECTED)


def test_an_enormous_graph_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setattr(structure, "GRAPH_LIMIT_BYTES", path.stat().st_size - 1)
    assert "is larger than" in refusal(path).message


def test_absent_and_unreadable_files(tmp_path: Path) -> None:
    assert "cannot read" in refusal(tmp_path / "absent.onnx").message
    (tmp_path / "folder.onnx").mkdir()
    assert "not a plain file" in refusal(tmp_path / "folder.onnx").message


def test_differences_are_a_short_table() -> None:
    one = ("sample", "float32", ("batch", 4))
    assert differing((one,), (one,)) == ""
    assert differing((one, one), (one,)) == "2 not 1"
    assert differing((("sample", "float16", ("batch", 4)),), (one,)) == (
        "'sample': float16 [batch,4] not float32 [batch,4]"
    )
    assert differing((), (one,)) == "'sample': absent not float32 [batch,4]"
    many = tuple((f"extra{number}", "float32", (1,)) for number in range(9))
    assert differing(many, ()).endswith("; and 4 more")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_in_one_line_or_does_no_harm(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(sound().SerializeToString())
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    path = write(tmp_path)
    path.write_bytes(bytes(damaged))
    refused = None
    try:
        check_structure(path, EXPECTED)
    except SdrtError as error:
        refused = error
    assert refused is None or (refused.exit_code in (3, 8) and "\n" not in refused.message)
