"""Recovery of a pruned ONNX file: distillation, resuming after a kill, several processes, the verb."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import Net, residual

import graphprune
from graphprune.cli.main import main
from graphprune.errors import InputError, TargetError, UsageError
from graphprune.passes.shrink import Shrink

torch = pytest.importorskip("torch")

from graphprune.training.distill import consumers  # noqa: E402
from graphprune.training.finetune import _Training  # noqa: E402
from graphprune.training.groups import difference, outputs_of  # noqa: E402
from graphprune.training.iterative import _word, prune_and_tune, shares  # noqa: E402
from graphprune.training.parallel import World  # noqa: E402
from graphprune.training.rates import usual_sizes  # noqa: E402

RUN = {"updates": 12, "batch": 2, "lr": 3e-3, "evaluate_every": 4, "seed": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``original.onnx``, ``pruned/model.onnx`` and ``data.npz``."""
    folder = tmp_path_factory.mktemp("finetune")
    onnx.save(residual().model, folder / "original.onnx")
    data = np.random.default_rng(0).standard_normal((256, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=data)
    network = graphprune.load(folder / "original.onnx")
    network.export(folder / "pruned", target_params="0.6x", measure=None, criterion="random")
    return folder


def tune(files: Path, **changes: Any) -> Any:
    given = (files / "pruned" / "model.onnx", files / "original.onnx", files / "data.npz")
    return graphprune.finetune(*given, **{**RUN, **changes})


def weights(path: Path) -> dict[str, Any]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def test_distillation_brings_it_nearer_and_is_written(files: Path, tmp_path: Path) -> None:
    result = tune(files, out=tmp_path, updates=30)
    assert result.after < 0.7 * result.before
    document = json.loads((tmp_path / "finetune.json").read_text())
    assert document["distance"] == {"before": result.before, "after": result.after}
    assert document["updates"] == 30 and document["samples"]["held_out"] == 32
    again = graphprune.load(tmp_path / "model.onnx", inputs=result.network.program.examples)
    assert difference(outputs_of(result.network), outputs_of(again)) < 1e-6
    before = weights(files / "pruned" / "model.onnx")
    assert {name: one.shape for name, one in weights(tmp_path / "model.onnx").items()} == {
        name: one.shape for name, one in before.items()
    }


def test_killed_and_resumed_ends_in_the_same_weights(files: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {**RUN, "updates": 150, "evaluate_every": 50, "rank": 2}
    tune(files, out=whole, **options)
    code = (
        "import sys, json, graphprune\n"
        "a = json.loads(sys.argv[1])\n"
        "graphprune.finetune(*a['files'], out=a['out'], checkpoint_every=3, **a['options'])\n"
    )
    given = [str(files / "pruned" / "model.onnx"), str(files / "original.onnx"), str(files / "data.npz")]
    words = json.dumps({"files": given, "out": str(killed), "options": options})
    process = subprocess.Popen([sys.executable, "-c", code, words])
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (killed / "checkpoint.pt").exists() and not (killed / "model.onnx").exists()
    at = torch.load(killed / "checkpoint.pt", weights_only=True)["update"]
    assert 0 < at < 150
    with pytest.raises(UsageError, match="other options"):
        tune(files, out=killed, resume=True, **{**options, "lr": 1e-4})
    tune(files, out=killed, resume=True, **options)
    expected, found = weights(whole / "model.onnx"), weights(killed / "model.onnx")
    assert all(np.array_equal(one, expected[name]) for name, one in found.items())
    assert not (killed / "checkpoint.pt").exists()


def test_torchrun_trains_with_two_processes_as_one_does(files: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    tune(files, out=one)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "graphprune"),
            *("finetune", str(files / "pruned" / "model.onnx"), str(files / "original.onnx"), "-o", str(two)),
            *("--data", str(files / "data.npz"), "--updates", "12", "--batch", "2", "--lr", "3e-3"),
            *("--evaluate-every", "4", "--seed", "1"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=180,
        check=True,
    )
    expected, found = weights(one / "model.onnx"), weights(two / "model.onnx")
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5)


def test_low_rank_updates_have_that_rank(files: Path) -> None:
    result = tune(files, rank=2, updates=6)
    start = weights(files / "pruned" / "model.onnx")
    changed = 0
    for name, value in start.items():
        delta = (result.network.program.tensor(name) - value).reshape(value.shape[0], -1) if value.ndim > 1 else None
        if delta is not None and np.abs(delta).max() > 0:
            changed += 1
            assert np.linalg.matrix_rank(delta, tol=1e-5 * np.linalg.norm(delta)) <= 2
    assert changed and result.after < result.before


def test_inner_values_are_compared(files: Path) -> None:
    program = graphprune.load(files / "original.onnx").program
    pruned = graphprune.load(files / "pruned" / "model.onnx").program
    same = [n for n in program.shapes if pruned.shapes.get(n) == program.shapes[n] and n not in program.fixed]
    inner = [name for name in same if name not in ("x", "y")]
    cut = next(n for n in program.shapes if n in pruned.shapes and pruned.shapes[n] != program.shapes[n])
    with pytest.raises(InputError, match="values that the cut leaves whole"):
        tune(files, features=(cut,), updates=1)
    if inner:
        plain, both = tune(files, updates=1), tune(files, updates=1, features=tuple(inner[:1]))
        assert both.before > plain.before
    with pytest.raises(UsageError, match="no value 'nothing'"):
        tune(files, features=("nothing",))


def test_an_own_loss_is_resumed_in_its_place(files: Path, tmp_path: Path) -> None:
    data = np.load(files / "data.npz")["x"]
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 5, len(data)))

    def loss(run: Any) -> Any:
        for at in range(0, 64, 16):
            yield torch.nn.functional.cross_entropy(run({"x": data[at : at + 16]})["y"], labels[at : at + 16])

    class Killed(Exception):
        pass

    calls = 0

    def dying(run: Any) -> Any:
        nonlocal calls
        for one in loss(run):
            calls += 1
            if calls == 8:
                raise Killed
            yield one

    dying.__name__ = "loss"
    options = {"updates": 10, "checkpoint_every": 6, "distil": 0.5, "statistics": True}
    with pytest.raises(InputError, match="Killed"):
        tune(files, out=tmp_path / "b", loss=dying, **options)
    resumed = tune(files, out=tmp_path / "b", loss=loss, resume=True, **options)
    whole = tune(files, out=tmp_path / "a", loss=loss, **options)
    for name in weights(tmp_path / "a" / "model.onnx"):
        assert np.array_equal(whole.network.program.tensor(name), resumed.network.program.tensor(name))


def test_random_numbers_go_on_where_they_were(files: Path, tmp_path: Path) -> None:
    """How many are drawn depends on the weights, so that reading the data again does not bring their state back."""
    data = np.load(files / "data.npz")["x"]
    drawn: list[list[Any]] = []

    def loss(run: Any) -> Any:
        drawn.append([])
        for at in range(8):
            found = run({"x": data[8 * at : 8 * at + 8]})["y"].square().mean()
            count = int(1e6 * float(found.detach())) % 7
            np.random.rand(count), torch.rand(count), [random.random() for _ in range(count)]
            drawn[-1].append((np.random.rand(), float(torch.rand(())), random.random()))
            if len(drawn) == 1 and at == 7:
                raise ValueError("killed")
            yield found

    options = {"updates": 8, "checkpoint_every": 4}
    with pytest.raises(InputError, match="killed"):
        tune(files, out=tmp_path, loss=loss, **options)
    tune(files, out=tmp_path, loss=loss, resume=True, **options)
    assert drawn[1][4:] == drawn[0][4:]


@pytest.mark.parametrize("changes", [{}, {"rank": 2}], ids=str)
def test_a_float16_network_is_trained_and_stays_one(changes: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 1))
    x = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float16)
    network = graphprune.load(torch.nn.Sequential(*layers).half(), inputs=(x[:2],))
    pruned = network.export(tmp_path, target_params="0.6x", measure=None, criterion="random").model
    samples = [{"input": one} for one in x.reshape(12, 2, 3, 8, 8)]
    result = graphprune.finetune(pruned, network, samples, updates=20, batch=2, **changes)
    assert result.after < 0.9 * result.before
    trained, before = (one.program.tensor("0.weight") for one in (result.network, graphprune.load(pruned)))
    assert trained.dtype == np.float16 and trained.shape == before.shape and (trained != before).any()


def test_training_stops_early_and_keeps_the_best(files: Path) -> None:
    result = tune(files, updates=50, lr=3.0, optimizer="sgd", clip=0.0, weight_decay=0.3, evaluate_every=1, patience=2)
    assert result.updates < 50
    looked = [result.before, *(one["held_out"] for one in result.history)]
    assert result.after == pytest.approx(min(looked), rel=1e-6)
    assert result.after <= result.before


def test_a_rate_that_is_too_high_is_lowered_on_the_way(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = tune(files, updates=40, lr=30.0, evaluate_every=4)
    looked = [one["held_out"] for one in result.history]
    assert looked[0] > 4 * result.before and "rate is too high" in caplog.text
    assert result.after < 0.9 * result.before and result.best > 4


def test_steps_follow_a_scaled_channel() -> None:
    rows, columns = (torch.rand(n, generator=torch.Generator().manual_seed(n)) + 0.5 for n in (6, 9))
    signs = torch.sign(torch.randn(6, 9, 3, 3, generator=torch.Generator().manual_seed(0)))
    weight = rows.view(-1, 1, 1, 1) * columns.view(1, -1, 1, 1) * signs
    scale = torch.logspace(-0.5, 0.5, 6).view(-1, 1, 1, 1)
    size = usual_sizes(weight)
    assert torch.allclose(size, weight.abs().amax((2, 3), keepdim=True), rtol=0.05)
    assert torch.allclose(usual_sizes(weight * scale), size * scale, rtol=0.1)
    assert torch.allclose(usual_sizes(7.0 * weight), 7.0 * size, rtol=1e-5)
    assert usual_sizes(torch.zeros(4)).min() > 0 and usual_sizes(torch.tensor(0.0)) > 0


def test_the_verb_prunes_and_tunes_in_steps(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", str(files / "original.onnx"), "-o", str(tmp_path), "--data", str(files / "data.npz")]
    assert main([*words, "--target-macs", "0.5x", "--steps", "2", "--updates", "6"]) == 0
    assert "distance from the original" in capsys.readouterr().out
    original, found = (graphprune.load(path) for path in (files / "original.onnx", tmp_path / "model.onnx"))
    assert found.cost.macs({}) <= 0.5 * original.cost.macs({})
    assert main(words) == 2
    document = json.loads((tmp_path / "finetune.json").read_text())
    assert document["source_sha256"] == {"original.onnx": sha256((files / "original.onnx").read_bytes()).hexdigest()}
    target = document["target"]
    assert target["asked"] == "0.5x" and target["original"] == original.cost.macs({}) == 2 * target["limit"]
    first, last = document["steps"]
    assert first["asked"]["macs"] > last["asked"]["macs"] == target["limit"]
    assert last["reached"]["macs"] == found.cost.macs({}) and last["distance"] == document["distance"]
    assert first["updates"] + last["updates"] == document["options"]["updates"] == 6


def test_a_target_out_of_reach_is_told_before_any_training(files: Path, tmp_path: Path) -> None:
    original, data = files / "original.onnx", files / "data.npz"
    with pytest.raises(TargetError, match=r"even in 3 cuts, with the floor 0.1 of each: .* cannot be met: the lowest"):
        prune_and_tune(original, data, tmp_path / "out", target="0.001x", steps=3)
    with pytest.raises(TargetError, match=r"even in 2 cuts, with the floor 0\.9 of each"):
        prune_and_tune(original, data, tmp_path / "out", target="0.5x", steps=2, floor=0.9)
    assert not (tmp_path / "out").exists()


def test_a_cut_that_went_further_than_asked_does_not_stop_the_next(tmp_path: Path) -> None:
    """One group of four units: what is cut first is below what the next steps ask for."""
    net = Net()
    net.linear(net.op("Relu", net.linear(net.input("x", ["batch", 12]), "a", 12, 4)), "b", 4, 30, out="y")
    onnx.save(net.build({"y": ["batch", 30]}), tmp_path / "net.onnx")
    data = [{"x": np.random.default_rng(i).standard_normal((1, 12)).astype(np.float32)} for i in range(4)]
    options = graphprune.training.finetune.FinetuneOptions(updates=5)  # type: ignore[attr-defined]
    result = prune_and_tune(tmp_path / "net.onnx", data, tmp_path / "out", target="0.5x", steps=5, options=options)
    assert result.network.cost.macs({}) <= 84


def test_steps_share_the_updates(files: Path, tmp_path: Path) -> None:
    options = graphprune.training.finetune.FinetuneOptions(updates=5)  # type: ignore[attr-defined]
    result = prune_and_tune(
        files / "original.onnx", files / "data.npz", tmp_path, target="0.7x", steps=2, options=options
    )
    assert result.updates == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"updates": 0}, "updates=0"), ({"lr": 0.0}, "^lr=0.0: a number above 0$"),
     ({"clip": -1.0}, "^clip=-1.0: a number of at least 0$"), ({"warm_up": 1.0}, "^warm_up=1.0: a share"),
     ({"temperature": float("nan")}, "^temperature=nan: a number above 0$"), ({"distil": 0.0}, "nothing to train for"),
     ({"resume": True}, "need a folder"), ({"optimizer": "lion"}, "optimizer='lion'")],
)  # fmt: skip
def test_options_that_make_no_sense(files: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tune(files, **changes)


def test_the_verb_names_the_option(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", str(files / "pruned" / "model.onnx"), str(files / "original.onnx"), "-o", str(tmp_path)]
    assert main([*words, "--data", str(files / "data.npz"), "--lr", "-1"]) == 2
    assert "Invalid value for '--lr': -1.0 is not in the range x>0" in capsys.readouterr().err


@pytest.mark.parametrize(("updates", "steps"), [(300, 5), (7, 3), (10, 1), (1, 4)])
def test_half_of_the_updates_come_after_the_last_cut(updates: int, steps: int) -> None:
    found = shares(updates, steps)
    assert len(found) == steps and sum(found) == updates and min(found) >= 0
    assert found[-1] == (updates - updates // 2 if steps > 1 else updates)
    assert max(found[:-1], default=0) - min(found[:-1], default=0) <= 1


def test_no_network_that_was_given_is_overwritten(files: Path, tmp_path: Path) -> None:
    for name in ("original.onnx", "pruned/model.onnx"):
        (tmp_path / Path(name).parent).mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((files / name).read_bytes())
    (tmp_path / "model.onnx").write_bytes((files / "original.onnx").read_bytes())
    data = files / "data.npz"
    for out, said in ((tmp_path, "would overwrite a network"), (tmp_path / "pruned", "would overwrite")):
        with pytest.raises(UsageError, match=said):
            graphprune.finetune(tmp_path / "pruned/model.onnx", tmp_path / "model.onnx", data, out, updates=1)
    with pytest.raises(UsageError, match="holds an export and its manifest"):
        graphprune.finetune(tmp_path / "pruned/model.onnx", tmp_path / "model.onnx", data, files / "pruned", updates=1)
    assert (tmp_path / "model.onnx").read_bytes() == (files / "original.onnx").read_bytes()


def test_a_checkpoint_belongs_to_one_network_and_one_original(files: Path, tmp_path: Path) -> None:
    """The same shapes with other weights are another network."""
    keys = []
    for seed in (0, 1):
        other = onnx.load(files / "original.onnx")
        for one in other.graph.initializer:
            if one.data_type == onnx.TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(one) * np.float32(1 + 0.1 * seed)
                one.CopyFrom(onnx.numpy_helper.from_array(array, one.name))
        onnx.save(other, tmp_path / f"{seed}.onnx")
        network, original = (graphprune.load(path) for path in (files / "pruned/model.onnx", tmp_path / f"{seed}.onnx"))
        options = graphprune.training.finetune.FinetuneOptions(updates=1)  # type: ignore[attr-defined]
        made = _Training(network, original, files / "data.npz", None, options, World())
        keys.append(made.key)
    assert keys[0] != keys[1]


def test_devices_that_do_not_serve(files: Path) -> None:
    with pytest.raises(UsageError, match=r"--device abacus: PyTorch .* has no such device here"):
        tune(files, device="abacus")


@pytest.mark.parametrize("broken_at", ["cut", "training"])
def test_steps_go_on_where_they_were_broken_off(
    broken_at: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, data = files / "original.onnx", files / "data.npz"
    options = graphprune.training.finetune.FinetuneOptions(  # type: ignore[attr-defined]
        updates=12, batch=2, lr=3e-3, limit=40, checkpoint_every=2
    )
    job: dict[str, Any] = {"target": "0.6x", "steps": 3, "options": options}
    prune_and_tune(original, data, tmp_path / "whole", **job)
    assert sorted(one.name for one in (tmp_path / "whole").iterdir()) == ["finetune.json", "model.onnx"]
    with monkeypatch.context() as broken:
        if broken_at == "cut":
            real, cuts = graphprune.Network.export, itertools.count()

            def export(self: Any, *given: Any, **more: Any) -> Any:
                if next(cuts) == 1:
                    raise KeyboardInterrupt
                return real(self, *given, **more)

            broken.setattr(graphprune.Network, "export", export)
        else:
            step, updates = _Training._step, itertools.count()

            def stepped(self: Any, batch: Any) -> None:
                if next(updates) == 9:  # the fourth of the last training
                    raise KeyboardInterrupt
                step(self, batch)

            broken.setattr(_Training, "_step", stepped)
        with pytest.raises(KeyboardInterrupt):
            prune_and_tune(original, data, tmp_path / "out", **job)
    assert not (tmp_path / "out" / "model.onnx").exists()
    (tmp_path / "other" / "steps").mkdir(parents=True)
    with pytest.raises(UsageError, match="is in the way, and not of such a job"):
        prune_and_tune(original, data, tmp_path / "other", **job)
    with pytest.raises(UsageError, match="other options, samples or another network"):
        prune_and_tune(original, data, tmp_path / "out", resume=True, **{**job, "target": "0.5x"})
    result = prune_and_tune(original, data, tmp_path / "out", resume=True, **job)
    assert result.folder == tmp_path / "out" and not (tmp_path / "out" / "steps").exists()
    expected, found = (weights(tmp_path / name / "model.onnx") for name in ("whole", "out"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(one, expected[name]) for name, one in found.items())


def test_torchrun_cuts_once_and_trains_together(files: Path, tmp_path: Path) -> None:
    words = [
        *("finetune", str(files / "original.onnx"), "--target-macs", "0.6x", "--steps", "2", "--data-samples", "24"),
        *("--data", str(files / "data.npz"), "--updates", "6", "--batch", "2", "--lr", "3e-3"),
    ]
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "graphprune", *words, "-o", str(tmp_path / "two")),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=180,
        check=True,
    )
    expected, found = (weights(tmp_path / name / "model.onnx") for name in ("one", "two"))
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-2, atol=1e-4)


def test_inner_values_behind_what_was_cut_are_found(files: Path, tmp_path: Path) -> None:
    network = graphprune.load(files / "original.onnx")
    first = ("a1.conv.weight", "b1.conv.weight")
    inside = {
        one.id: np.arange(one.size) % 2 == 0
        for one in network.grouping.groups
        if any(m.tensor in first and m.role == "producer" for m in one.members)
    }
    onnx_file = network.save(tmp_path / "same.onnx")
    network.write(Shrink(inside)(network.grouping), tmp_path / "cut.onnx")
    pruned = graphprune.load(tmp_path / "cut.onnx")
    found = consumers(pruned, graphprune.load(onnx_file))
    norms = [node.outputs[0].name for node in network.program.model.graph if node.op_type == "BatchNormalization"]
    assert len(inside) == 2 and found == (norms[2], norms[4])  # behind the second convolution of each block
    data = files / "data.npz"
    plain, both = (graphprune.finetune(pruned, network, data, updates=1, features=names) for names in ((), ("auto",)))
    assert both.before > plain.before


def test_a_loader_with_labels_gives_samples(files: Path, tmp_path: Path) -> None:
    images = torch.from_numpy(np.load(files / "data.npz")["x"][:24])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(24)), batch_size=8)
    given = (files / "pruned" / "model.onnx", files / "original.onnx")
    expected = graphprune.finetune(*given, loader, **RUN)
    assert expected.after < expected.before
    sets = torch.utils.data.TensorDataset
    several: tuple[Any, ...] = (sets(images), sets(images, torch.rand(24, 3, 8, 8), torch.arange(24)))
    forms = [torch.utils.data.DataLoader(one, batch_size=8) for one in several]
    held = [part.clone().requires_grad_() for part in images.split(8)]
    for form in (*forms, held):
        assert graphprune.finetune(*given, form, **RUN).before == expected.before
    np.savez(tmp_path / "part.npz", x=images.numpy())
    of_file, of_arrays = (graphprune.finetune(*given, one, **RUN) for one in (tmp_path / "part.npz", {"x": images}))
    assert of_file.before == of_arrays.before


def test_options_of_a_schedule_are_the_same_in_every_process() -> None:
    def made() -> Any:
        def loss(run: Any) -> Any:
            return run

        return {"criterion_options": {"loss": loss}, "table": np.arange(3)}

    first, second = (json.dumps(made(), default=_word) for _ in range(2))
    assert first == second != json.dumps({**made(), "table": np.arange(1, 4)}, default=_word)


def test_samples_that_hold_nan_are_blamed(files: Path, tmp_path: Path) -> None:
    data = np.full((20, 3, 8, 8), np.nan, np.float32)
    np.savez(tmp_path / "nan.npz", x=data)
    with pytest.raises(InputError, match="the samples hold NaN"):
        graphprune.finetune(files / "pruned/model.onnx", files / "original.onnx", tmp_path / "nan.npz", updates=1)
