"""Round trips, exact bytes and refusals of every encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dlcc.ir import (
    DENSE,
    F32,
    FLOAT16,
    Affine,
    Binary,
    Codebook,
    Encoding,
    Graph,
    Grouped,
    ProductCodebook,
    ResidualCodebook,
    Sparse,
    TensorType,
    Ternary,
    parse_graph,
    print_graph,
)
from dlcc.ir.clustering import cluster_scalars, cluster_vectors
from dlcc.ir.compressed import from_matrix, matrix_view
from dlcc.ir.packing import pack_bits, packed_size, unpack_bits

Array = np.ndarray[Any, Any]


def random(*shape: int, seed: int = 0, zeros: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape).astype(np.float32)
    return np.where(rng.random(shape) < zeros, np.float32(0), values)


# -- packing -----------------------------------------------------------------------------------


@given(st.integers(1, 32), st.booleans(), st.data())
def test_packing_round_trip(bits: int, signed: bool, data: st.DataObject) -> None:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    codes = data.draw(hnp.arrays(np.int64, st.integers(0, 70), elements=st.integers(low, high)))
    packed = pack_bits(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.size == packed_size(codes.size, bits)
    np.testing.assert_array_equal(unpack_bits(packed, codes.size, bits, signed=signed), codes)


def test_packing_is_least_significant_first() -> None:
    assert pack_bits(np.array([1, 2, 3, 0, 5]), 3).tolist() == [0b11010001, 0b01010000]
    assert pack_bits(np.array([1, -1, 0, 1]), 2).tolist() == [0b01001101]


def test_packing_of_many_codes() -> None:
    codes = np.random.default_rng(0).integers(0, 32, 200_001)
    np.testing.assert_array_equal(unpack_bits(pack_bits(codes, 5), codes.size, 5), codes)


def test_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 bytes do not hold 9 codes of 2 bits"):
        unpack_bits(np.zeros(2, np.uint8), 9, 2)


# -- every encoding ----------------------------------------------------------------------------

SHAPE = (4, 8, 3, 2)
SCALES = (0.5, 0.25, 0.125, 1.0)

ENCODINGS: dict[str, Encoding] = {
    "dense": DENSE,
    "affine": Affine.per_tensor(8, False, 0.05, 100),
    "affine4": Affine.symmetric(4, np.array(SCALES), 0),
    "ternary": Ternary((0.5,), (0.25,)),
    "ternary_axis": Ternary(SCALES, SCALES[::-1], 0),
    "binary": Binary((0.75,)),
    "binary_axis": Binary(SCALES, 0),
    "codebook1": Codebook(1),
    "codebook3": Codebook(3),
    "codebook8": Codebook(8),
    "product": ProductCodebook(2, 4),
    "product_shared": ProductCodebook(4, 2, shared=True),
    "product_outputs": ProductCodebook(3, 2, along="output"),
    "product_outputs_shared": ProductCodebook(4, 4, True, "output"),
    "residual": ResidualCodebook(8, 2, 1),
    "residual_outputs": ResidualCodebook(8, 2, 1, "output"),
    "grouped2": Grouped(2, 16),
    "grouped4": Grouped(4, 5),
    "grouped8": Grouped(8, 64),
    "sparse": Sparse("unstructured"),
    "sparse_float16": Sparse("unstructured", FLOAT16),
    "sparse_affine": Sparse("unstructured", Affine.symmetric(8, np.array(SCALES), 0)),
    "sparse_codebook": Sparse("unstructured", Codebook(3)),
    "balanced": Sparse("balanced2"),
    "balanced_affine": Sparse("balanced1", Affine.symmetric(8, np.array(SCALES), 0)),
    "nm": Sparse("2:4"),
    "nm_affine": Sparse("1:8", Affine.per_tensor(4, True, 0.3, -2)),
    "nm_binary": Sparse("2:4", Binary(SCALES, 0)),
    "block": Sparse("block2x4"),
    "block_ternary": Sparse("block1x4", Ternary(SCALES, SCALES, 0)),
    "block_affine": Sparse("block3x5", Affine.symmetric(8, np.array([0.01]), None)),
    "block_affine_axis": Sparse("block3x5", Affine.symmetric(8, np.array(SCALES), 0)),
}


@pytest.mark.parametrize("name", ENCODINGS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 20), zeros=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_projecting_twice_changes_nothing(name: str, seed: int, zeros: float) -> None:
    encoding = ENCODINGS[name]
    values = random(*SHAPE, seed=seed, zeros=zeros)
    once = encoding.decode(encoding.encode(values), SHAPE)
    assert once.shape == SHAPE
    assert once.dtype == np.float32
    np.testing.assert_array_equal(encoding.decode(encoding.encode(once), SHAPE), once)


@pytest.mark.parametrize("name", ENCODINGS)
def test_text_and_contents_round_trip(name: str) -> None:
    encoding, graph = ENCODINGS[name], Graph("g")
    value = graph.add_constant(random(*SHAPE, zeros=0.3), encoding=encoding, name="w")
    graph.set_outputs([value])
    sidecar: dict[str, Array] = {}
    text = print_graph(graph, sidecar)
    again = parse_graph(text, sidecar)
    assert again.outputs[0].type.encoding == encoding
    assert print_graph(again) == text
    np.testing.assert_array_equal(again.outputs[0].decoded(), value.decoded())


@pytest.mark.parametrize("name", sorted(set(ENCODINGS) - {"dense"}))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    values = random(*SHAPE)
    values[1, 2, 0, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        ENCODINGS[name].encode(values)


def test_sizes_are_exact() -> None:
    n = 4 * 8 * 3 * 2
    half = np.where(np.arange(n).reshape(SHAPE) % 4 == 0, np.float32(1), np.float32(0))

    def size(encoding: Encoding, values: Array) -> int:
        return encoding.stored_bytes(encoding.encode(values))

    values = random(*SHAPE)
    assert size(DENSE, values) == 4 * n
    assert size(ENCODINGS["affine"], values) == n + 4 + 1
    assert size(ENCODINGS["affine4"], values) == n // 2 + 4 * 4
    assert size(ENCODINGS["ternary_axis"], values) == n // 4 + 4 * 8
    assert size(ENCODINGS["binary_axis"], values) == n // 8 + 4 * 4
    assert size(ENCODINGS["codebook3"], values) == n * 3 // 8 + 8 * 4
    assert size(ENCODINGS["codebook3"], half) == n * 3 // 8 + 2 * 4
    assert size(ENCODINGS["product"], values) == 4 * 12 * 2 // 8 + 12 * 4 * 4 * 4
    assert size(ENCODINGS["product_shared"], values) == n // 2 * 4 // 8 + 16 * 2 * 4
    assert size(ResidualCodebook(4, 2, 3), values) == 3 * n // 2 * 4 // 8 + 3 * 16 * 2 * 4
    assert size(ENCODINGS["sparse"], half) == n // 8 + 4 * n // 4
    assert size(ENCODINGS["sparse_affine"], half) == n // 8 + n // 4 + 4 * 4
    assert size(ENCODINGS["nm"], values) == n // 2 * 2 // 8 + 4 * n // 2
    assert size(ENCODINGS["nm_affine"], values) == n // 8 * 3 // 8 + n // 8 // 2 + 4 + 1
    blocks = np.zeros(SHAPE, np.float32)
    blocks[1, 4:6, 2, 1] = 1
    assert size(ENCODINGS["block"], blocks) == 2 * 12 // 8 + 8 * 4


# -- what each one means -----------------------------------------------------------------------


def test_matrix_view_has_input_channels_fastest() -> None:
    values = np.arange(4 * 8 * 3 * 2).reshape(SHAPE)
    matrix = matrix_view(values)
    assert matrix.shape == (4, 48)
    np.testing.assert_array_equal(matrix[1, :8], values[1, :, 0, 0])
    np.testing.assert_array_equal(from_matrix(matrix, SHAPE), values)
    assert matrix_view(np.arange(5)).shape == (5, 1)


def test_ternary_values_and_fit() -> None:
    encoding = Ternary((1.0,), (2.0,))
    values = np.float32([0.6, 0.5, -0.9, -1.1, 5.0])
    np.testing.assert_array_equal(encoding.decode(encoding.encode(values), (5,)), [1, 0, 0, -2, 1])
    fitted = Ternary.fit(np.float32([[1, -4, 0.1], [0.1, 2, 0.1]]), axis=0)
    assert fitted.positive == (0.0, 2.0)
    assert fitted.negative == (4.0, 0.0)
    skewed = Ternary.fit(np.float32([1.0, 3.0, -2.0, 0.0]))
    assert skewed == Ternary((3.0,), (2.0,)) or skewed == Ternary((2.0,), (2.0,))


def test_binary_fit_is_the_least_squares_scale() -> None:
    values = random(3, 50)
    fitted = Binary.fit(values, axis=0)
    best = np.sum((values - fitted.decode(fitted.encode(values), values.shape)) ** 2)
    for factor in (0.9, 1.1):
        other = Binary(tuple(s * factor for s in fitted.scales), 0)
        assert np.sum((values - other.decode(other.encode(values), values.shape)) ** 2) > best


def test_codebook_of_few_values_is_exact() -> None:
    values = np.float32([[3, -1, 3], [7, -1, 7]])
    parts = Codebook(2).encode(values)
    np.testing.assert_array_equal(parts["codebook"], [-1, 3, 7])
    np.testing.assert_array_equal(Codebook(2).decode(parts, (2, 3)), values)


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-9, 9, width=32)))
def test_every_number_gets_its_nearest_entry(values: Array) -> None:
    entries, index = cluster_scalars(values, 4)
    error = np.abs(values[:, None].astype(np.float64) - entries[None].astype(np.float64))
    np.testing.assert_array_equal(
        np.take_along_axis(error, index[:, None], 1)[:, 0], error.min(axis=1)
    )


def test_more_entries_make_less_error() -> None:
    values = random(2000)
    errors = []
    for bits in range(1, 9):
        coder = Codebook(bits)
        errors.append(np.mean((coder.decode(coder.encode(values), values.shape) - values) ** 2))
    assert errors == sorted(errors, reverse=True)
    assert errors[7] < 2e-4


def test_more_stages_make_less_error() -> None:
    values = random(64, 32)
    errors = []
    for stages in (1, 2, 3, 4):
        coder = ResidualCodebook(4, 4, stages)
        errors.append(np.mean((coder.decode(coder.encode(values), values.shape) - values) ** 2))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 2


def test_large_sets_of_vectors_are_clustered_by_a_sample() -> None:
    centres = random(16, 4, seed=3) * 50
    index = np.random.default_rng(0).integers(0, 16, 34_000)
    vectors = (centres[index] + random(34_000, 4, seed=4) * 0.01).astype(np.float32)
    book, found = cluster_vectors(vectors, 32)
    assert np.mean((book[found] - vectors) ** 2) < 1.0
    few, chosen = cluster_vectors(centres[index], 16)
    np.testing.assert_array_equal(few[chosen], centres[index])


def test_unstructured_is_lossless() -> None:
    values = random(5, 7, zeros=0.8)
    parts = Sparse("unstructured").encode(values)
    np.testing.assert_array_equal(Sparse("unstructured").decode(parts, (5, 7)), values)
    assert Sparse("unstructured").density(parts, (5, 7)) == np.mean(values != 0)


@given(
    hnp.arrays(np.float32, (6, 5), elements=st.sampled_from([0.0, 0.0, 1.5, -2.0])),
    st.sampled_from([1, 2, 3, 6]),
)
def test_balanced_shares_store_equally_many(values: Array, share: int) -> None:
    coder = Sparse(f"balanced{share}")
    parts = coder.encode(values)
    np.testing.assert_array_equal(coder.decode(parts, (6, 5)), values)
    stored = unpack_bits(parts["mask"], 30, 1).reshape(6 // share, -1).sum(axis=1)
    most = np.count_nonzero(values.reshape(6 // share, -1), axis=1).max()
    assert stored.tolist() == [most] * (6 // share)
    assert parts["values"].size == most * (6 // share)


def test_n_of_m_keeps_the_largest_along_the_input_channels() -> None:
    values = random(*SHAPE)
    coder = Sparse("2:4")
    out = coder.decode(coder.encode(values), SHAPE)
    groups = np.moveaxis(values, 1, -1).reshape(-1, 4)
    kept = np.moveaxis(out, 1, -1).reshape(-1, 4)
    assert np.all((kept != 0).sum(axis=1) == 2)
    largest = np.sort(np.abs(groups), axis=1)[:, 2:]
    np.testing.assert_array_equal(np.sort(np.abs(kept), axis=1)[:, 2:], largest)
    assert coder.density(coder.encode(values), SHAPE) == 0.5


def test_blocks_are_kept_whole() -> None:
    values = np.zeros((4, 9), np.float32)
    values[3, 8] = 5.0
    coder = Sparse("block2x4")
    parts = coder.encode(values)
    assert parts["values"].size == 8
    np.testing.assert_array_equal(unpack_bits(parts["mask"], 6, 1), [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(coder.decode(parts, (4, 9)), values)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ternary((1.0, 2.0), (1.0,), 0), "one scale is needed"),
        (lambda: Ternary((1.0, 2.0), (1.0, 1.0)), "one scale is needed"),
        (lambda: Binary((-1.0,)), "not negative"),
        (lambda: Codebook(0), "must be 1 to 16"),
        (lambda: ProductCodebook(8, 0), "at least 1"),
        (lambda: ResidualCodebook(8, 2, 0), "at least 1"),
        (lambda: ProductCodebook(8, 2, along="rows"), "along input or output, not 'rows'"),
        (lambda: ResidualCodebook(8, 2, 2, "both"), "along input or output, not 'both'"),
        (lambda: ProductCodebook(4, 4, along="output").encode(random(6, 4)), "6 outputs cannot"),
        (lambda: Grouped(1, 32), "must be 2 to 8"),
        (lambda: Grouped(9, 32), "must be 2 to 8"),
        (lambda: Grouped(4, 0), "at least 1"),
        (lambda: Sparse("2:4", Grouped(4, 32)), "cannot be the inner"),
        (lambda: Sparse("4:2"), "keeps more"),
        (lambda: Sparse("0:4"), "unknown pattern"),
        (lambda: Sparse("blocks"), "unknown pattern"),
        (lambda: Sparse("2:4", Sparse("unstructured")), "cannot be the inner"),
        (lambda: Sparse("2:4", ProductCodebook(8, 2)), "cannot be the inner"),
        (lambda: Sparse("2:4").encode(random(3, 6)), "do not divide axis 1"),
        (lambda: Sparse("balanced0"), "unknown pattern"),
        (lambda: Sparse("balanced2").encode(random(3, 6)), "do not divide 3 rows"),
        (lambda: ProductCodebook(4, 4).encode(random(3, 6)), "cannot be cut into runs"),
        (lambda: Binary((1.0, 2.0), 0).encode(random(3, 6)), "do not fit axis 0"),
        (lambda: Affine(1, True, (1.0,), (0,)), "must be 2 to 32"),
        (lambda: Affine(8, False, (1.0,), (256,)), "lies outside"),
        (lambda: Affine(8, False, (0.0,), (0,)), "positive and finite"),
        (lambda: Affine(8, True, (1.0, 1.0), (0, 0)), "need an axis"),
    ],
)
def test_refusals(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# -- affine ------------------------------------------------------------------------------------


@given(st.integers(2, 16), st.booleans(), st.floats(1e-3, 10), st.data())
def test_codes_survive(bits: int, signed: bool, scale: float, data: st.DataObject) -> None:
    low, high = Affine(bits, signed, (1.0,), (0,)).code_range
    encoding = Affine.per_tensor(bits, signed, scale, data.draw(st.integers(low, high)))
    codes = np.arange(low, high + 1, max(1, (high - low) // 300))
    again = encoding.quantise(encoding.dequantise(codes))
    np.testing.assert_array_equal(again, codes)
    assert again.dtype == encoding.storage(F32).numpy


@given(st.floats(-50, 50, width=32))
def test_rounding_is_half_to_even_and_clamped(value: float) -> None:
    encoding = Affine.per_tensor(4, True, 2.0, 1)
    (code,) = encoding.quantise(np.float32([value]))
    assert code == min(max(round(value / 2) + 1, -8), 7)


def test_wide_affine_codes() -> None:
    bias = Affine(32, True, (0.5, 0.25), (0, 0), axis=0)
    codes = bias.encode(np.float32([2**29, -1.0]))["values"]
    assert codes.dtype == np.int32
    assert codes.tolist() == [2**30, -4]
    top = Affine.per_tensor(32, True, 1.0, 0).quantise(np.float64([2.0**40, -(2.0**40)]))
    assert top.tolist() == [2**31 - 1, -(2**31)]
    unsigned = Affine.per_tensor(32, False, 1.0, 0).quantise(np.float64([2.0**40, -1.0]))
    assert unsigned.tolist() == [2**32 - 1, 0]


def test_an_axis_of_another_size_is_refused() -> None:
    encoding = Affine.symmetric(8, np.array([1.0, 2.0]), 0)
    with pytest.raises(ValueError, match="do not fit axis 0"):
        encoding.encode(random(3, 2))


def test_narrow_weights_avoid_the_most_negative_code() -> None:
    encoding = Affine.symmetric(8, np.array([1.0]), None)
    assert encoding.quantise(np.float32([-1000.0])).tolist() == [-127]
    assert encoding.real_range == (-127.0, 127.0)


def test_type_of_an_encoded_value() -> None:
    type_ = TensorType((2, 3), F32, Affine.per_tensor(4, False, 0.1, 3))
    assert str(type_.storage) == "u8"
    assert type_.bytes == 6
    with pytest.raises(TypeError, match="dense encoding where an affine"):
        TensorType((2,), F32).affine  # noqa: B018


def test_codes_of_sparse_weights_stand_in_their_places():
    values = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    values[np.abs(values) < 0.6] = 0
    inner = Affine.symmetric(8, np.abs(values).max(axis=1) / 127, 0)
    for pattern in ("unstructured", "block4x4", "block4x3"):
        encoding = Sparse(pattern, inner)
        codes = encoding.codes(encoding.encode(values), values.shape)
        np.testing.assert_array_equal(codes, inner.quantise(values))
    with pytest.raises(TypeError, match="dense has no integer codes"):
        Sparse("unstructured").codes({}, values.shape)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("shape", "group"), [((3, 70), 32), ((4, 32, 3, 3), 32), ((2, 5, 2, 2), 7)]
)
def test_groups_have_scales_of_their_own(bits: int, shape: tuple[int, ...], group: int) -> None:
    values, encoding = random(*shape), Grouped(bits, group)
    parts = encoding.encode(values)
    got = matrix_view(encoding.decode(parts, shape))
    matrix, last = matrix_view(values), 2 ** (bits - 1) - 1
    columns = matrix.shape[1]
    assert parts["scales"].shape == (shape[0], -(-columns // group))
    size = parts["values"].nbytes + 4 * parts["scales"].size
    assert encoding.stored_bytes(parts) == size
    assert parts["values"].nbytes == -(-values.size * bits // 8)
    for row in range(shape[0]):
        for start in range(0, columns, group):
            part = matrix[row, start : start + group]
            scale = np.abs(part).max() / np.float32(last)
            assert parts["scales"][row, start // group] == pytest.approx(scale, rel=1e-6)
            want = np.rint(part.astype(np.float64) / parts["scales"][row, start // group])
            np.testing.assert_array_equal(
                got[row, start : start + group],
                want.astype(np.float32) * parts["scales"][row, start // group],
            )


def test_codes_of_groups_can_be_given_their_scales() -> None:
    codes = np.random.default_rng(0).integers(-3, 4, (6, 40))
    scales = np.random.default_rng(1).uniform(0.1, 2, (6, 3)).astype(np.float32)
    values = codes.astype(np.float32) * np.repeat(scales, 16, axis=1)[:, :40]
    encoding = Grouped(3, 16)
    parts = encoding.with_scales(values, scales)
    np.testing.assert_array_equal(encoding.codes(parts, (6, 40)), codes)
    np.testing.assert_array_equal(encoding.decode(parts, (6, 40)), values)


@pytest.mark.parametrize("shape", [(6, 4), (4, 3, 2, 2)])
@pytest.mark.parametrize("shared", [False, True])
def test_runs_along_the_outputs_are_runs_of_the_transpose(
    shape: tuple[int, ...], shared: bool
) -> None:
    values = random(*shape)
    turned = np.ascontiguousarray(matrix_view(values).T)
    for make in (
        lambda along: ProductCodebook(2, 2, shared, along),
        lambda along: ResidualCodebook(2, 2, 3, along),
    ):
        across, plain = make("output"), make("input")
        parts, want = across.encode(values), plain.encode(turned)
        for name in want:
            np.testing.assert_array_equal(parts[name], want[name])
        got = matrix_view(across.decode(parts, shape))
        np.testing.assert_array_equal(got.T, plain.decode(want, turned.shape))
        assert across.stored_bytes(parts) == plain.stored_bytes(want)
