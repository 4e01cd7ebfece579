"""References to external data that must not be followed (CVE-2022-25882, CVE-2024-27318 and later ones)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import (
    Fault,
    check_refused,
    dense_model,
    external_model,
    function_model,
    if_model,
    make_external,
    model_of,
    save,
    sparse_model,
    weights,
    write_data,
)

from graphprune.frontends.onnx import read_onnx
from graphprune.ir.store import write_onnx

FAULTS: dict[str, Fault] = {}


def fault(make: Fault) -> Fault:
    FAULTS[make.__name__] = make
    return make


def data(sentence: str) -> str:
    return f"tensor 'w': its external data {sentence}"


@fault
def external_missing(folder: Path):
    return external_model(folder), data("'w.bin' is missing; it must lie beside the model")


@fault
def external_without_location(folder: Path):
    return external_model(folder, location=""), "tensor 'w' is stored as external data, but no location is given"


@fault
def external_absolute(folder: Path):
    return external_model(folder, location="/etc/passwd"), data(
        "'/etc/passwd' is an absolute path; it must lie in the model's folder"
    )


@fault
def external_absolute_on_windows(folder: Path):
    return external_model(folder, location="C:\\w.bin"), data(
        "'C:\\\\w.bin' is an absolute path; it must lie in the model's folder"
    )


@fault
def external_above(folder: Path):
    write_data(folder / "w.bin")
    (folder / "sub").mkdir()
    return external_model(folder / "sub", location="../w.bin"), data(
        "'../w.bin' leaves the model's folder through '..'"
    )


@fault
def external_above_and_back(folder: Path):
    (folder / "sub").mkdir()
    write_data(folder / "sub" / "w.bin")
    return external_model(folder / "sub", location="../sub/w.bin"), data(
        "'../sub/w.bin' leaves the model's folder through '..'"
    )


@fault
def external_through_a_link(folder: Path):
    write_data(folder / "secret")
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").symlink_to(folder / "secret")
    return external_model(folder / "sub"), data(
        "'w.bin' leaves the model's folder through a symbolic link; put the file itself there (cp -L)"
    )


@fault
def external_through_a_linked_folder(folder: Path):
    (folder / "elsewhere").mkdir()
    write_data(folder / "elsewhere" / "w.bin")
    (folder / "sub").mkdir()
    (folder / "sub" / "data").symlink_to("../elsewhere")
    return external_model(folder / "sub", location="data/w.bin"), data(
        "'data/w.bin' leaves the model's folder through a symbolic link; put the file itself there (cp -L)"
    )


@fault
def external_in_a_folder_with_the_same_beginning(folder: Path):
    (folder / "sub-secret").mkdir()
    write_data(folder / "sub-secret" / "w.bin")
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").symlink_to("../sub-secret/w.bin")
    return external_model(folder / "sub"), data(
        "'w.bin' leaves the model's folder through a symbolic link; put the file itself there (cp -L)"
    )


@fault
def external_link_in_a_circle(folder: Path):
    (folder / "w.bin").symlink_to("w.bin")
    return external_model(folder), data("'w.bin' cannot be reached: too many levels of symbolic links")


@fault
def external_hard_link(folder: Path):
    (folder / "sub").mkdir()
    os.link(write_data(folder / "secret"), folder / "sub" / "w.bin")
    return external_model(folder / "sub"), data(
        "'w.bin' has 2 hard links, so it may be another file; put a copy in its place (cp)"
    )


@fault
def external_pipe(folder: Path):
    os.mkfifo(folder / "w.bin")
    return external_model(folder), data("'w.bin' is not a regular file")


@fault
def external_with_a_slash_at_its_end(folder: Path):
    write_data(folder / "w.bin")
    return external_model(folder, location="w.bin/"), data("'w.bin/' is not a regular file")


@fault
def external_folder(folder: Path):
    return external_model(folder, location="."), data("'.' is not a regular file")


@fault
def external_with_a_null(folder: Path):
    return external_model(folder, location="w\0.bin"), data("'w\\x00.bin' holds a null character")


@fault
def external_too_short(folder: Path):
    write_data(folder / "w.bin", count=500)
    return external_model(folder), (
        "tensor 'w': its external data ends at byte 2048 of 'w.bin', which has only 2000 bytes; "
        "the file may be cut short"
    )


@fault
def external_offset_beyond(folder: Path):
    write_data(folder / "w.bin")
    return external_model(folder, offset=4096), (
        "tensor 'w': its external data ends at byte 6144 of 'w.bin', which has only 2048 bytes; "
        "the file may be cut short"
    )


@fault
def external_offset_negative(folder: Path):
    write_data(folder / "w.bin")
    return external_model(folder, offset=-8), (
        "tensor 'w': its external data in 'w.bin' has offset '-8', which is no number of bytes"
    )


@fault
def external_length_of_another_tensor(folder: Path):
    write_data(folder / "w.bin", count=4096)
    return external_model(folder, length=4096), (
        "tensor 'w': its external data in 'w.bin' has length 4096, but shape [32, 16] of type FLOAT takes 2048 bytes"
    )


@fault
def external_length_not_a_number(folder: Path):
    write_data(folder / "w.bin")
    return external_model(folder, length="1_000"), (
        "tensor 'w': its external data in 'w.bin' has length '1_000', which is no number of bytes"
    )


@fault
def external_strings(folder: Path):
    proto = dense_model()
    make_external(proto.graph.initializer[0], location="w.bin")
    proto.graph.initializer[0].data_type = TensorProto.STRING
    write_data(folder / "w.bin")
    return save(proto, folder), "tensor 'w' holds strings, which cannot be stored as external data"


@fault
def external_in_a_constant(folder: Path):
    node = helper.make_node("Constant", [], ["y"], "c", value=numpy_helper.from_array(weights(2, 16), "w"))
    make_external(node.attribute[0].t, location="../w.bin")
    return save(model_of([node]), folder), (
        "tensor attribute 'value' of Constant node 'c': its external data '../w.bin' leaves the model's folder "
        "through '..'"
    )


@fault
def external_in_a_subgraph(folder: Path):
    proto = if_model()
    make_external(proto.graph.node[0].attribute[1].g.initializer[0], location="/w.bin")
    return save(proto, folder), (
        "tensor 'inner': its external data '/w.bin' is an absolute path; it must lie in the model's folder"
    )


@fault
def external_in_a_function(folder: Path):
    proto = function_model()
    constant = helper.make_node("Constant", [], ["k"], "c", value=numpy_helper.from_array(weights(2), "w"))
    make_external(constant.attribute[0].t, location="../w.bin")
    proto.functions[0].node.append(constant)
    return save(proto, folder), (
        "tensor attribute 'value' of Constant node 'c': its external data '../w.bin' leaves the model's folder "
        "through '..'"
    )


@fault
def external_in_a_sparse_tensor(folder: Path):
    proto = sparse_model()
    make_external(proto.graph.sparse_initializer[0].values, location="../w.bin")
    return save(proto, folder), (
        "values of sparse tensor 'w': its external data '../w.bin' leaves the model's folder through '..'"
    )


@fault
def external_offset_of_thousands_of_digits(folder: Path):
    write_data(folder / "w.bin")
    return external_model(folder, offset="9" * 5000), (
        "tensor 'w': its external data in 'w.bin' has offset '99999999999999999999'..., which is no number of bytes"
    )


@fault
def external_offset_that_overflows(folder: Path):
    write_data(folder / "w.bin")
    return external_model(folder, offset=2**64 - 2048), (
        f"tensor 'w': its external data ends at byte {2**64} of 'w.bin', which has only 2048 bytes; "
        "the file may be cut short"
    )


@fault
def external_location_given_twice(folder: Path):
    """Which of the two a reader takes is its own affair, so a check of one says nothing of the other."""
    write_data(folder / "w.bin")
    proto = dense_model()
    make_external(proto.graph.initializer[0], location="/etc/passwd")
    proto.graph.initializer[0].external_data.add(key="location", value="w.bin")
    return save(proto, folder), "tensor 'w': its external data gives 'location' twice"


@fault
def external_that_is_the_model_itself_and_too_long(folder: Path):
    proto = dense_model()
    make_external(proto.graph.initializer[0], location="m.onnx")
    path = save(proto, folder)
    return path, (
        f"tensor 'w': its external data ends at byte 2048 of 'm.onnx', which has only {path.stat().st_size} bytes; "
        "the file may be cut short"
    )


@fault
def external_without_room_for_its_sizes(folder: Path):
    write_data(folder / "w.bin")
    proto = dense_model()
    make_external(proto.graph.initializer[0], location="w.bin")
    proto.graph.initializer[0].dims[:] = [2**20, 2**20]
    return save(proto, folder), (
        "tensor 'w': its external data ends at byte 4398046511104 of 'w.bin', which has only 2048 bytes; "
        "the file may be cut short"
    )


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_file_is_one_sentence_and_exit_code_2(name, tmp_path, run_cli, add_verb):
    check_refused(*FAULTS[name](tmp_path), run_cli, add_verb)


def test_keys_that_nobody_knows_change_nothing(tmp_path):
    """An entry is looked up, never set as an attribute of an object (GHSA-538c-55jv-c5g9)."""
    write_data(tmp_path / "w.bin")
    path = external_model(tmp_path, __class__="x", base_dir="/etc", path="/etc/passwd", numpy="x", checksum="0")
    tensor = read_onnx(path).graph.initializers["w"].const_value
    assert os.path.samefile(tensor.path, tmp_path / "w.bin")
    np.testing.assert_array_equal(tensor.numpy(), weights(512).reshape(32, 16))


@pytest.mark.parametrize("external", [False, True])
def test_a_link_in_the_place_of_an_output_is_replaced_not_followed(tmp_path, external):
    """The race on writing (GHSA-q56x-g2fj-4rj6): whatever stands at the name, bytes go to a new file."""
    model = read_onnx(save(dense_model(), tmp_path))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("m.onnx", "m.onnx.data"):
        (out / name).symlink_to(victim)
    written = write_onnx(model, out / "m.onnx", external=external)
    assert victim.read_text() == "precious"
    assert not any(path.is_symlink() for path in written)
