from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphprune.coupling.groups import Group, Member, Role
from graphprune.errors import InputError, UsageError
from graphprune.passes import score
from graphprune.passes.score import base, weights


def member(tensor: str, array: NDArray[Any], axis: int, unit_of: Sequence[int], role: Role = "producer") -> Member:
    return Member(tensor, axis, array.shape[axis], array.ndim, role, np.array(unit_of, dtype=np.int64))


def slices(each: Member, array: NDArray[Any], unit: int) -> NDArray[np.float64]:
    """Everything that a unit owns in a member, by definition."""
    return np.take(array, np.flatnonzero(each.unit_of == unit), axis=each.axis).astype(np.float64)


RNG = np.random.default_rng(7)
# Six heads of four channels (i // 4), their shared head dimension (i % 4), a part of a concat (-1 elsewhere).
TENSORS: dict[str, NDArray[Any]] = {
    "q": RNG.normal(size=(24, 5)).astype(np.float32),
    "o": RNG.normal(size=(3, 24)).astype(np.float32),
    "conv": RNG.normal(size=(10, 6, 3, 3)).astype(np.float32),
    "bias": RNG.normal(size=6).astype(np.float32),
    "gamma": RNG.normal(size=6).astype(np.float32),
    "gamma2": RNG.normal(size=(1, 6)).astype(np.float32),
    "int8": RNG.integers(-128, 128, size=(6, 7)).astype(np.int8),
    "half": RNG.normal(size=(2, 6)).astype(np.float16),
}
HEADS = Group(
    "heads",
    "leaf",
    6,
    True,
    (
        member("q", TENSORS["q"], 0, [i // 4 for i in range(24)]),
        member("o", TENSORS["o"], 1, [i // 4 for i in range(24)], "consumer"),
        Member("scores", 1, 6, 4, "contracted", np.arange(6)),
    ),
)
DIMS = Group("dims", "leaf", 4, True, (member("q", TENSORS["q"], 0, [i % 4 for i in range(24)]),))
PART = Group(
    "part",
    "leaf",
    6,
    True,
    (
        member("conv", TENSORS["conv"], 0, [-1, 5, 4, -1, 3, 2, 1, 0, -1, -1]),
        member("conv", TENSORS["conv"], 1, range(6), "consumer"),
        member("bias", TENSORS["bias"], 0, range(6), "rider"),
        member("gamma", TENSORS["gamma"], 0, range(6), "rider"),
        member("gamma2", TENSORS["gamma2"], 1, range(6), "rider"),
    ),
)
CASTS = Group(
    "casts",
    "leaf",
    6,
    True,
    (member("int8", TENSORS["int8"], 0, range(6)), member("half", TENSORS["half"], 1, range(6), "consumer")),
)
UNEVEN = Group("uneven", "leaf", 3, True, (member("q", TENSORS["q"], 0, [0] * 4 + [1] * 9 + [-1] * 9 + [2, 0]),))
GROUPS = (HEADS, DIMS, PART, CASTS, UNEVEN)


def tensors(name: str) -> NDArray[Any]:
    return TENSORS[name]


def norms(group: Group, p: int, roles: tuple[Role, ...]) -> NDArray[np.float64]:
    return np.array(
        [
            [np.linalg.norm(slices(each, TENSORS[each.tensor], unit).ravel(), p) for unit in range(group.size)]
            for each in group.members
            if each.role in roles
        ]
    )


@pytest.mark.parametrize("group", GROUPS, ids=lambda each: each.id)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("how", score.REDUCTIONS)
def test_magnitude_by_definition(group: Group, p: int, how: base.Reduction) -> None:
    parts = norms(group, p, ("producer", "consumer"))
    expected = {
        "norm": lambda: np.linalg.norm(parts, p, axis=0),
        "sum": lambda: parts.sum(0),
        "mean": lambda: parts.mean(0),
        "max": lambda: parts.max(0),
        "prod": lambda: parts.prod(0),
        "first": lambda: parts[0],
    }[how]()
    found = score.Magnitude(p=p, reduce=how, normalize="none").score(group, tensors)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_default_magnitude_is_the_joint_l2_norm_over_the_mean() -> None:
    joint = np.sqrt((norms(PART, 2, ("producer", "consumer")) ** 2).sum(0))
    np.testing.assert_allclose(score.criterion("magnitude").score(PART, tensors), joint / joint.mean(), rtol=1e-12)


@pytest.mark.parametrize("block", [1, 5, 64])
def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    whole = [score.Magnitude(p=p).score(each, tensors) for each in GROUPS for p in (1, 2)]
    fpgm = [score.Fpgm().score(each, tensors) for each in GROUPS]
    monkeypatch.setattr(base, "BLOCK", block)
    monkeypatch.setattr(weights, "PAIRS", block)
    for one, other in zip(whole, [score.Magnitude(p=p).score(g, tensors) for g in GROUPS for p in (1, 2)], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    for one, other in zip(fpgm, [score.Fpgm().score(each, tensors) for each in GROUPS], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7)


@pytest.mark.parametrize("group", GROUPS, ids=lambda each: each.id)
def test_fpgm_by_definition(group: Group) -> None:
    parts = []
    for each in group.members:
        if each.role == "producer":
            owned = [slices(each, TENSORS[each.tensor], unit) for unit in range(group.size)]
            flat = [np.moveaxis(one, each.axis, 0).ravel() for one in owned]
            width = max(one.size for one in flat)
            rows = [np.pad(one, (0, width - one.size)) for one in flat]
            parts.append([sum(np.linalg.norm(a - b) for b in rows) for a in rows])
    found = score.Fpgm(normalize="none").score(group, tensors)
    np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-7)


def test_fpgm_of_equal_filters_is_zero() -> None:
    same = np.tile(RNG.normal(size=(1, 300)) * 1e3, (5, 1))
    group = Group("same", "leaf", 5, True, (member("w", same, 0, range(5)),))
    assert score.Fpgm().score(group, lambda name: same).tolist() == [0.0] * 5


@pytest.mark.parametrize("group", GROUPS, ids=lambda each: each.id)
def test_lamp_by_definition(group: Group) -> None:
    squares = (norms(group, 2, ("producer", "consumer")) ** 2).sum(0)
    expected = [s / squares[squares >= s].sum() for s in squares]
    found = score.Lamp().score(group, tensors)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.max() == 1.0


def test_lamp_takes_equal_units_one_after_the_other() -> None:
    ones = np.ones((4, 2))
    group = Group("ones", "leaf", 4, True, (member("w", ones, 0, range(4)),))
    np.testing.assert_allclose(score.Lamp().score(group, lambda name: ones), [1 / 4, 1 / 3, 1 / 2, 1])
    assert score.Lamp().score(group, lambda name: 0 * ones).tolist() == [0.0] * 4


def test_bn_scale_reads_the_scales_it_is_told() -> None:
    gamma, gamma2 = np.abs(TENSORS["gamma"]).astype(float), np.abs(TENSORS["gamma2"][0]).astype(float)
    criterion = score.BnScale(normalize="none")
    np.testing.assert_allclose(criterion.score(PART, tensors, scales=frozenset({"gamma"})), gamma)
    both = criterion.score(PART, tensors, scales=frozenset({"gamma", "gamma2", "elsewhere"}))
    np.testing.assert_allclose(both, (gamma + gamma2) / 2)
    assert criterion.remark(PART, scales=frozenset({"gamma"})) is None


def test_bn_scale_of_a_unit_of_several_channels_is_their_mean() -> None:
    gamma = np.array([1.0, -3.0, 5.0, 7.0])
    group = Group("pairs", "leaf", 2, True, (member("g", gamma, 0, [0, 0, 1, 1], "rider"),))
    found = score.BnScale(normalize="none").score(group, lambda name: gamma, scales=frozenset({"g"}))
    assert found.tolist() == [2.0, 6.0]


def test_bn_scale_without_a_scale_falls_back_and_says_so() -> None:
    scores = score.score_groups(score.BnScale(), (PART, HEADS), tensors, scales=frozenset({"gamma"}))
    assert scores.notes == ("Group 'heads' has no BatchNorm scale; scored by magnitude instead.",)
    np.testing.assert_array_equal(scores.values["heads"], score.Magnitude().score(HEADS, tensors))


def test_groups_without_the_asked_roles_are_reported() -> None:
    rider = Group("riders", "leaf", 6, True, (member("bias", TENSORS["bias"], 0, range(6), "rider"),))
    bare = Group("bare", "leaf", 3, True, (Member("x", 1, 3, 4, "contracted", np.arange(3)),))
    scores = score.score_groups(score.Magnitude(normalize="none"), (rider, bare), tensors)
    assert scores.notes == (
        "Group 'riders' has no producer or consumer tensor; scored by its rider tensors.",
        "Group 'bare' has no producer or consumer tensor; its units count as equal.",
    )
    np.testing.assert_allclose(scores.values["riders"], np.abs(TENSORS["bias"]), rtol=1e-6)
    assert scores.values["bare"].tolist() == [1.0, 1.0, 1.0]
    assert score.Lamp().score(bare, tensors).shape == score.Fpgm().score(bare, tensors).shape == (3,)


def test_random_depends_on_seed_and_group_only() -> None:
    one = score.score_groups(score.Random(3), GROUPS, tensors).values
    other = score.score_groups(score.Random(3), GROUPS[::-1], tensors).values
    assert all((one[each.id] == other[each.id]).all() for each in GROUPS)
    assert (one["heads"] != one["part"]).all()
    assert (one["heads"] != score.Random(4).score(HEADS, tensors)).all()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [1.0, 2.0, 3.0]),
        ("mean", [0.5, 1.0, 1.5]),
        ("max", [1 / 3, 2 / 3, 1.0]),
        ("sum", [1 / 6, 2 / 6, 3 / 6]),
        ("standardize", [0.0, 0.5, 1.0]),
        ("gaussian", [-(1.5**0.5), 0.0, 1.5**0.5]),
    ],
)
def test_normalizers(how: base.Normalizer, expected: list[float]) -> None:
    np.testing.assert_allclose(base.normalize(np.array([1.0, 2.0, 3.0]), how), expected, rtol=1e-12)
    for equal in (0.0, 0.1):
        flat = base.normalize(np.full(3, equal), how)
        assert np.isfinite(flat).all() and (flat == flat[0]).all()


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([score.Magnitude(), score.Magnitude(p=1, reduce="prod"), score.Lamp(), score.Fpgm()]),
    st.sampled_from([0.125, 2.0, 4096.0, -1.0, -0.5]),
    st.integers(0, 2**31),
)
def test_scale_and_sign_do_not_matter(criterion: score.Criterion, scale: float, seed: int) -> None:
    w = np.random.default_rng(seed).normal(size=(8, 6)).astype(np.float32)
    group = Group("g", "leaf", 4, True, (member("w", w, 0, [0, 1, 2, 3, 3, 2, 1, 0]),))
    one = criterion.score(group, lambda name: w)
    np.testing.assert_allclose(criterion.score(group, lambda name: w * np.float32(scale)), one, rtol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([score.Magnitude(), score.Magnitude(p=1, normalize="gaussian"), score.Lamp(), score.Fpgm()]),
    st.permutations(range(7)),
    st.integers(0, 2**31),
)
def test_units_may_be_renumbered(criterion: score.Criterion, order: list[int], seed: int) -> None:
    w = np.random.default_rng(seed).normal(size=(5, 7, 2))
    group = Group("g", "leaf", 7, True, (member("w", w, 1, range(7)),))
    renumbered = Group("g", "leaf", 7, True, (member("w", w, 1, order),))
    one, other = criterion.score(group, lambda name: w), criterion.score(renumbered, lambda name: w)
    np.testing.assert_allclose(other[order], one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("criterion", [score.Magnitude(), score.Magnitude(p=1), score.Lamp(), score.Fpgm()])
def test_nan_and_infinity_name_the_tensor(criterion: score.Criterion, value: float) -> None:
    broken = TENSORS["conv"].copy()
    broken[0, 2, 1, 1] = value  # index 0 of axis 0 is outside the group: still broken weights
    group = Group("part", "leaf", 6, True, PART.members[:1])
    text = (
        "Tensor 'conv' (shape (10, 6, 3, 3)) holds 1 NaN or infinite value(s), so group 'part' cannot be scored; "
        "repair the weights or exclude this tensor."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        criterion.score(group, lambda name: broken)


def test_values_too_large_to_square() -> None:
    huge = np.full((2, 2), 1e200)
    group = Group("g", "leaf", 2, True, (member("w", huge, 0, range(2)),))
    with pytest.raises(InputError, match=r"Tensor 'w' .* holds values too large to be squared"):
        score.Magnitude().score(group, lambda name: huge)


def test_weights_of_another_model() -> None:
    text = (
        "Tensor 'q' has shape (5, 24), but group 'dims' expects 2 axes and 24 indices on axis 0; "
        "the weights and the groups are of different models."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        score.Magnitude().score(DIMS, lambda name: TENSORS["q"].T)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("magnitud", {}, "There is no criterion 'magnitud'; did you mean 'magnitude'?"),
        (
            "zzz",
            {},
            "There is no criterion 'zzz'; known are 'activation', 'bn-scale',",
        ),
        ("magnitude", {"normalise": "mean"}, "has no option 'normalise'; did you mean 'normalize'?"),
        ("magnitude", {"p": 3}, "magnitude: p=3 is not one of 1, 2."),
        (
            "fpgm",
            {"reduce": "median"},
            "fpgm: reduce='median' is not one of 'norm', 'sum', 'mean', 'max', 'prod', 'first'.",
        ),
        (
            "lamp",
            {"roles": ("contracted",)},
            "lamp: roles=('contracted',) must be one or more of 'producer', 'consumer'",
        ),
        ("magnitude", {"roles": "nobody"}, "magnitude: roles=('nobody',) must be one or more of"),
        ("random", {"seed": -1}, "random: seed=-1 must be a whole number of 0 or more."),
    ],
)
def test_what_makes_no_sense_is_told(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        score.criterion(name, **options)


def test_criteria_of_third_parties_are_checked() -> None:
    class Broken:
        name = "broken"

        def score(self, group: Group, tensors: score.Tensors, *, scales: frozenset[str] = frozenset()) -> base.Floats:
            return np.full(group.size, np.nan)

        def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
            return None

    with pytest.raises(InputError, match="Criterion 'broken' gave group 'dims' scores of shape"):
        score.score_groups(Broken(), (DIMS,), tensors)


def test_options_that_come_as_text_are_read_by_their_defaults() -> None:
    made: Any = score.criterion("obs", damp="0.05", centred="false")
    assert made.damp == 0.05 and made.centred is False
    made = score.criterion("magnitude", p="1", roles="producer")
    assert made.p == 1 and made.roles == ("producer",)
    for options, said in (({"damp": "much"}, "a number, such as 0.01"), ({"centred": "maybe"}, "true or false")):
        with pytest.raises(UsageError, match=said):
            score.criterion("obs", **options)


def test_a_plug_in_needs_a_name_and_scores_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @dataclass(frozen=True)
    class Last:
        """The last units stay."""

        name: ClassVar[str] = "last"

        def score(self, group: Group, tensors: Any, *, scales: Any = frozenset()) -> NDArray[np.float64]:
            return np.arange(group.size, dtype=np.float64)

    class Entry:
        def __init__(self, name: str, made: Any) -> None:
            self.name, self.value, self.made = name, f"somewhere:{name}", made

        def load(self) -> Any:
            if self.made is None:
                raise ImportError("no module named somewhere")
            return self.made

    entries = [Entry("last", Last), Entry("broken", None)]
    monkeypatch.setattr(score, "entry_points", lambda group: entries)
    assert {"last", "magnitude"} <= set(score.known()) and "broken" not in score.known()
    assert "the criterion 'broken' (somewhere:broken) cannot be loaded" in caplog.text
    found = score.score_groups(score.criterion("last"), [CASTS], tensors)  # type: ignore[arg-type]
    assert found.notes == () and found.values["casts"].tolist() == [0, 1, 2, 3, 4, 5]
    assert not isinstance(score.criterion("last"), score.Calibrated)


def test_a_sum_of_criteria_is_on_a_common_scale() -> None:
    parts = [base.Scores({"a": np.array([1.0, 3.0]), "b": np.array([2.0])}, ("odd",), True),
             base.Scores({"a": np.array([-10.0, 10.0]), "b": np.array([0.0])}, ("odd",))]  # fmt: skip
    found = score.blended([1.0, 0.5], parts)
    np.testing.assert_allclose(found.values["a"], [0.5 + 0.0, 1.5 + 0.5 * 2.0])
    np.testing.assert_allclose(found.values["b"], [1.0 + 0.5 * 1.0])
    assert found.notes == ("odd",) and not found.adds_up
    assert score.blended([2.0], parts[:1]) is parts[0]


def test_sums_of_criteria_are_read() -> None:
    found = score.criteria("magnitude + 0.5*random", seed=3)
    assert found == [(1.0, score.Magnitude()), (0.5, score.Random(seed=3))]
    assert score.criteria("magnitude", {"p": 1}) == [(1.0, score.Magnitude(p=1))]
    for text in ("magnitude+", "0*magnitude", "2*", "a b"):
        with pytest.raises(UsageError, match=r"write a name, or a sum such as wanda\+0.5\*magnitude"):
            score.criteria(text)
    with pytest.raises(UsageError, match="is a sum of 2"):
        score.criteria("magnitude+lamp", {"p": 1})
