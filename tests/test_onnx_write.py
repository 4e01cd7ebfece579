"""Models that are written: atomic, the same bytes for the same model, one tensor in memory at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import (
    X,
    constant_model,
    dense_model,
    external_model,
    if_model,
    model_of,
    run,
    save,
    value,
    weights,
    write_data,
)

from graphprune.errors import InputError, UsageError
from graphprune.frontends.onnx import read_onnx
from graphprune.ir import files
from graphprune.ir.files import atomic_files, output_folder, sha256_of
from graphprune.ir.store import external_locations, write_onnx


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("make", [dense_model, constant_model, if_model])
def test_a_round_trip_keeps_every_value(tmp_path, make, external):
    path = save(make(), tmp_path)
    (tmp_path / "out").mkdir()
    written = write_onnx(read_onnx(path), tmp_path / "out" / "m.onnx", external=external)
    has_large = make is not if_model  # its one tensor has 128 bytes and stays inside
    assert [file.name for file in written] == ["m.onnx.data", "m.onnx"][0 if external and has_large else 1 :]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(file.name for file in written)
    assert len(onnx.load(written[-1]).graph.node) == len(onnx.load(path).graph.node)
    feeds = {"x": X} | ({"flag": np.array(True)} if make is if_model else {})
    np.testing.assert_array_equal(run(written[-1], **feeds)[0], run(path, **feeds)[0])
    # Written again from what was just written, in the other form: still the same values.
    back = write_onnx(read_onnx(written[-1]), tmp_path / "back.onnx", external=not external)
    np.testing.assert_array_equal(run(back[-1], **feeds)[0], run(path, **feeds)[0])


def test_a_file_is_what_protobuf_would_write(tmp_path):
    model = read_onnx(save(dense_model(), tmp_path))
    write_onnx(model, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == ir.to_proto(model)


@pytest.mark.parametrize("external", [False, True])
def test_the_same_model_gives_the_same_bytes(tmp_path, external):
    path = save(dense_model(), tmp_path)
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written = write_onnx(read_onnx(path), tmp_path / name / "m.onnx", external=external)
        digests.append(sha256_of(written[-1], [file.name for file in written[:-1]]))
    assert digests[0] == digests[1]
    assert list(digests[0]) == (["m.onnx", "m.onnx.data"] if external else ["m.onnx"])


def test_the_threshold_decides_where_the_data_goes(tmp_path):
    model = read_onnx(save(dense_model(), tmp_path))
    nbytes = 32 * 16 * 4 + 16 * 4
    assert len(write_onnx(model, tmp_path / "a.onnx", threshold=nbytes)) == 1
    assert len(write_onnx(model, tmp_path / "b.onnx", threshold=nbytes - 1)) == 2
    assert external_locations(read_onnx(tmp_path / "b.onnx")) == ("b.onnx.data",)


@pytest.mark.parametrize("external", [False, True])
def test_writing_leaves_the_model_as_it_was(tmp_path, external):
    model = read_onnx(save(constant_model(), tmp_path))
    model.graph.initializers.add(ir.Value(name="extra", const_value=ir.tensor(weights(2048), name="extra")))
    before = [model.graph.initializers["extra"].const_value, *(node.attributes.get("value") for node in model.graph)]
    write_onnx(model, tmp_path / "out.onnx", external=external)
    after = [model.graph.initializers["extra"].const_value, *(node.attributes.get("value") for node in model.graph)]
    assert all(one is other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("external", [False, True])
def test_lazy_tensors_are_made_one_at_a_time(tmp_path, external):
    made: list[str] = []

    def lazy(name: str) -> ir.Value:
        def make() -> ir.Tensor:
            made.append(name)
            return ir.Tensor(weights(32, 32, seed=ord(name)), name=name)

        tensor = ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape([32, 32]), name=name)
        return ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([32, 32]))

    proto = model_of([helper.make_node("Identity", ["x"], ["y"], "i")], outputs=[value("y", "batch", 32)])
    model = read_onnx(save(proto, tmp_path))
    for name in "pqr":
        model.graph.initializers.add(lazy(name))
    write_onnx(model, tmp_path / "out.onnx", external=external)
    assert made == ["p", "q", "r"]
    again = read_onnx(tmp_path / "out.onnx")
    for name in "pqr":
        np.testing.assert_array_equal(
            again.graph.initializers[name].const_value.numpy(), weights(32, 32, seed=ord(name))
        )


def test_a_tensor_used_twice_is_stored_once(tmp_path):
    proto = dense_model()
    model = read_onnx(save(proto, tmp_path))
    shared = ir.tensor(weights(1024), name="shared")
    for name in ("s1", "s2"):
        model.graph.initializers.add(ir.Value(name=name, const_value=shared))
    data, _ = write_onnx(model, tmp_path / "out.onnx", external=True)
    assert data.stat().st_size == 4096 + 4096  # w, aligned, and the shared one
    again = read_onnx(tmp_path / "out.onnx")
    for name in ("s1", "s2"):
        np.testing.assert_array_equal(again.graph.initializers[name].const_value.numpy(), weights(1024))


@pytest.mark.parametrize("external", [False, True])
def test_the_narrow_types_survive(tmp_path, external):
    tensors = [
        helper.make_tensor("i4", TensorProto.INT4, [5001], np.arange(5001) % 16 - 8),
        helper.make_tensor("bf", TensorProto.BFLOAT16, [2000], np.arange(2000.0)),
        helper.make_tensor("f8", TensorProto.FLOAT8E4M3FN, [3000], np.arange(3000) % 17),
        numpy_helper.from_array(np.arange(2000) % 3 == 0, "bool"),
        helper.make_tensor("c", TensorProto.COMPLEX64, [600], np.arange(600) * 1j),
        helper.make_tensor("s", TensorProto.STRING, [2], [b"one", b"two"]),
        numpy_helper.from_array(np.float32(3), "scalar"),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "none"),
    ]
    proto = model_of([helper.make_node("Identity", ["x"], ["y"])], tensors, outputs=[value("y", "batch", 32)])
    proto.ir_version = 10
    path = save(proto, tmp_path)
    write_onnx(read_onnx(path), tmp_path / "out.onnx", external=external)
    again = {tensor.name: tensor for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer}
    for tensor in tensors:
        assert list(again[tensor.name].dims) == list(tensor.dims)
        expected, got = (numpy_helper.to_array(one) for one in (tensor, again[tensor.name]))
        assert expected.dtype == got.dtype
        np.testing.assert_array_equal(got, expected)


class Refuses(Exception):
    pass


@pytest.mark.parametrize("external", [False, True])
def test_a_failure_leaves_nothing_behind(tmp_path, external):
    def fail() -> ir.Tensor:
        raise Refuses

    model = read_onnx(save(dense_model(), tmp_path))
    lazy = ir.LazyTensor(fail, dtype=ir.DataType.FLOAT, shape=ir.Shape([999]), name="lazy")
    model.graph.initializers.add(ir.Value(name="lazy", const_value=lazy))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(Refuses):
        write_onnx(model, out / "m.onnx", external=external)
    assert os.listdir(out) == []


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path, external, monkeypatch, run_cli, add_verb):
    model = read_onnx(save(dense_model(), tmp_path))
    out = tmp_path / "out" / "m.onnx"
    out.parent.mkdir()
    out.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    add_verb(lambda: write_onnx(model, out, external=external))
    result = run_cli("try")
    name = f"{out}.data" if external else str(out)
    assert (result.code, result.err) == (2, f"graphprune: error: cannot write '{name}': no space left on the device\n")
    assert os.listdir(out.parent) == ["m.onnx"]
    assert out.read_text() == "old"


def test_a_failed_rename_takes_the_data_file_back(tmp_path, monkeypatch):
    model = read_onnx(save(dense_model(), tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    replace = os.replace

    def refuse_model(source: Path, target: Path) -> None:
        if target.name == "m.onnx":
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse_model)
    with pytest.raises(UsageError, match=r"^cannot write '.*/out/m\.onnx': permission denied$"):
        write_onnx(model, out / "m.onnx", external=True)
    assert os.listdir(out) == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [("none/m.onnx", "no such file or directory"), ("file/m.onnx", "not a directory"), ("folder", "is a directory")],
)
def test_a_target_that_cannot_be_written(tmp_path, target, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    model = read_onnx(save(dense_model(), tmp_path))
    with pytest.raises(UsageError) as caught:
        write_onnx(model, tmp_path / target)
    assert str(caught.value) == f"cannot write '{tmp_path / target}': {reason}"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "m.onnx"]


def test_the_source_of_the_data_is_not_overwritten(tmp_path):
    write_onnx(read_onnx(save(dense_model(), tmp_path, "in.onnx")), tmp_path / "m.onnx", external=True)
    model = read_onnx(tmp_path / "m.onnx")
    with pytest.raises(UsageError) as caught:
        write_onnx(model, tmp_path / "m.onnx", external=True)
    assert str(caught.value) == (
        f"cannot write '{tmp_path}/m.onnx': the model reads '{tmp_path}/m.onnx.data'; choose another folder"
    )


def test_more_than_protobuf_holds_is_refused_before_anything_is_computed(tmp_path):
    model = read_onnx(save(dense_model(), tmp_path))
    lazy = ir.LazyTensor(lambda: pytest.fail("made"), dtype=ir.DataType.FLOAT, shape=ir.Shape([2**29]), name="big")
    model.graph.initializers.add(ir.Value(name="big", const_value=lazy))
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="bytes are more than one ONNX file can hold"):
        write_onnx(model, tmp_path / "out" / "m.onnx", external=False)
    assert os.listdir(tmp_path / "out") == []


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_onnx(read_onnx(save(dense_model(), tmp_path)), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_several_files_take_their_names_together(tmp_path):
    with pytest.raises(Refuses), atomic_files(tmp_path / "a", tmp_path / "b") as (a, _):
        a.write(b"1")
        raise Refuses
    assert os.listdir(tmp_path) == []
    with atomic_files(tmp_path / "a", tmp_path / "b") as (a, b):
        a.write(b"1")
        b.write(b"2")
        assert not (tmp_path / "a").exists()
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"1", b"2"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_output_folder(tmp_path):
    assert output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "file", "it is not a folder"), (tmp_path / "file" / "sub", "not a directory")):
        with pytest.raises(UsageError) as caught:
            output_folder(path)
        assert str(caught.value) == f"cannot write into '{path}': {reason}"


def test_hashes_cover_the_data_files(tmp_path):
    write_data(tmp_path / "w.bin")
    path = external_model(tmp_path)
    digests = sha256_of(path, external_locations(read_onnx(path)))
    assert list(digests) == ["m.onnx", "w.bin"]
    write_data(tmp_path / "w.bin", count=513)
    changed = sha256_of(path, ["w.bin"])
    assert changed["m.onnx"] == digests["m.onnx"]
    assert changed["w.bin"] != digests["w.bin"]
    with pytest.raises(InputError, match=r"its external data '\.\./w\.bin' leaves the model's folder through '\.\.'"):
        sha256_of(path, ["../w.bin"])


def test_a_path_may_be_an_argument_of_a_verb(tmp_path, run_cli, add_verb):
    path = save(dense_model(), tmp_path)
    add_verb(lambda model: click.echo(len(read_onnx(model).graph)), click.Argument(["model"]))
    result = run_cli("try", path)
    assert (result.code, result.out, result.err) == (0, "2\n", "")
