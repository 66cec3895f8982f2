import contextlib
import doctest
import hashlib
import io
import platform
import re
import subprocess
import sys
from math import sqrt

import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT, ROOT

import rst_hub.networks.weights as weights_module
from rst_hub import Init
from rst_hub.errors import SettingsError
from rst_hub.networks.weights import DISTRIBUTIONS, SeededTensor, Ternary, normal_quantiles, random_bytes

SHAPE = (64, 31, 3, 3)
DIGESTS = {
    "signed_kaiming_constant": "9a6a94a3e536e3771ac36de3a8953208c7fb4028a98435285c91d4a4f45fcd3f",
    "kaiming_normal": "ce76039e558970a5ba14928611ec85b786c47911fec3dbedb215666ca41b5815",
    "xavier_normal": "a423e4bcaea3140ca090fc788711dd3d08db8d68d0c140a74b0075f7d6a546c1",
    "kaiming_uniform": "4defa3aeed9ec7aa7ca9623821e0a22457efb0c0191617861d8ac5831825848b",
}


def weight(distribution, name="layer.weight", shape=SHAPE, seed=7):
    init = Init(seed, distribution)
    fan_in, fan_out = int(np.prod(shape[1:])), shape[0] * int(np.prod(shape[2:]))
    return init.tensor(SeededTensor(name, shape, init.scale(fan_in, fan_out), masked=True))


def sha256(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_philox_gives_the_published_answer():
    # Known-answer vectors of Random123 1.14 for philox4x64-10: counter and key all zeros, all ones. numpy steps the
    # counter before the first block, so it starts one below.
    ones = 2**64 - 1
    start = np.array([ones] * 4, np.uint64)
    zeros = np.random.Philox(key=np.zeros(2, np.uint64), counter=start).random_raw(4)
    assert [hex(v) for v in zeros.tolist()] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]
    full = np.random.Philox(key=np.full(2, ones, np.uint64), counter=np.array([ones - 1, ones, ones, ones], np.uint64))
    assert [hex(v) for v in full.random_raw(4).tolist()] == [
        "0x87b092c3013fe90b",
        "0x438c3c67be8d0224",
        "0x9cc7d7c69cd777b6",
        "0xa09caebf594f0ba0",
    ]


def test_the_key_is_what_the_module_says():
    key = np.frombuffer(hashlib.sha256(b"rst-hub/1/weight/7/layer.weight").digest()[:16], "<u8")
    expected = np.random.Philox(key=key.astype(np.uint64)).random_raw(2).astype("<u8").tobytes()
    assert random_bytes("weight", 7, "layer.weight", 13).tobytes() == expected[:13]


def test_the_quantile_table_is_the_same_everywhere():
    table = normal_quantiles()
    assert table.dtype == np.float32
    assert (
        hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
        == "c5f5ea2d3eff3897271e7e3760dfed060d7fb6d24ef430c0e5626e20d41211b3"
    )
    assert abs(float((table.astype(np.float64) ** 2).mean()) - 1) < 1e-6
    assert np.array_equal(table, -table[::-1])
    assert np.all(np.diff(table) >= 0)


def test_no_table_entry_is_near_a_tie_of_its_rounding():
    from math import fsum
    from statistics import NormalDist

    upper = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)]
    deviation = sqrt(fsum(q * q for q in upper) / 32768)
    distances = [abs((q / deviation * 65536) % 1 - 0.5) for q in upper]
    assert len(distances) == 32768
    assert min(distances) > 1e-6  # a logarithm would have to be wrong in its tenth digit to move an entry


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_weights_are_those_of_version_1(distribution):
    assert sha256(weight(distribution)) == DIGESTS[distribution]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_weights_are_the_same_whatever_torch_makes_by_default(distribution):
    spec, packed = SeededTensor("w", (9, 7), 0.1, masked=True), np.full(8, 0b1010101, np.uint8)

    def masked():
        made = Init(0, distribution).masked(spec, packed)
        return made.tensor() if isinstance(made, Ternary) else made

    expected = masked()
    with torch.device("meta"):
        assert sha256(weight(distribution)) == DIGESTS[distribution]
        assert torch.equal(masked(), expected)
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            assert sha256(weight(distribution)) == DIGESTS[distribution]
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow  # .ci/run has it
def test_weights_are_the_same_under_any_cpu_kernel_and_thread_count():
    program = (
        "import sys, torch; sys.path[:0] = ['tests', 'tests/networks']; import test_weights as t;"
        "print(torch.get_num_threads(), torch.backends.cpu.get_cpu_capability());"
        "[print(t.sha256(t.weight(d))) for d in t.DISTRIBUTIONS]"
    )
    root = ENVIRONMENT["PYTHONPATH"]
    runs = []
    for capability in ("default", "avx2", "avx512"):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program],
                env={**ENVIRONMENT, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": threads, **numpy},
                cwd=root,
                stdout=subprocess.PIPE,
                text=True,
            )
            for threads, numpy in (("1", {}), ("2", {"NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX"}))
        ]
        runs += [process.communicate(timeout=120)[0].split() for process in started]
    assert len(runs) == 6
    assert {run[0] for run in runs} == {"1", "2"}
    assert len({tuple(run[1:-4]) for run in runs}) > 1 or platform.machine() not in ("x86_64", "AMD64")
    assert all(run[-4:] == [DIGESTS[d] for d in DISTRIBUTIONS] for run in runs)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_moments_are_right_to_statistical_accuracy(distribution):
    shape = (2048, 1024)
    values = weight(distribution, shape=shape).double().flatten()
    n, fan_in, fan_out = values.numel(), 1024, 2048
    std = sqrt(2 / (fan_in + fan_out)) if distribution == "xavier_normal" else sqrt(2 / fan_in)
    kurtosis = {"signed_kaiming_constant": 1.0, "kaiming_uniform": 1.8}.get(distribution, 3.0)
    scaled = values / std
    assert abs(float(scaled.mean())) < 5 / sqrt(n)
    assert abs(float((scaled**2).mean()) - 1) < 5 * sqrt(max(kurtosis - 1, 1e-12) / n) + 1e-6
    assert abs(float((scaled**3).mean())) < 5 * sqrt(15 / n)
    assert abs(float((scaled**4).mean()) - kurtosis) < 5 * sqrt(96 / n) + 1e-4
    lagged = float((scaled[1:] * scaled[:-1]).mean())
    assert abs(lagged) < 5 / sqrt(n)
    if distribution == "signed_kaiming_constant":
        assert values.unique().tolist() == [-float(np.float32(std)), float(np.float32(std))]


def test_another_name_seed_or_purpose_gives_independent_bits():
    drawn = [weight("signed_kaiming_constant", name, seed=seed) for name in ("a", "b") for seed in (0, 1)]
    drawn = [torch.sign(w).flatten() for w in drawn]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    assert len(pairs) == 6
    for i, j in pairs:
        assert abs(float((drawn[i] * drawn[j]).mean())) < 5 / sqrt(drawn[i].numel())


def test_a_longer_tensor_of_a_name_starts_with_the_shorter_one():
    for distribution in DISTRIBUTIONS:
        init = Init(3, distribution)
        short, long = (init.tensor(SeededTensor("w", (n,), 1.0, masked=True)) for n in (1001, 5003))
        assert torch.equal(short, long[:1001])


def test_tables_are_normal_with_their_own_scale():
    table = Init(0).tensor(SeededTensor("pos_embed", (1, 4096, 64), 0.02, masked=False))
    assert abs(float(table.std()) / 0.02 - 1) < 0.01
    assert table.unique().numel() > 1000


def test_a_seed_of_64_bits_works_and_others_are_refused():
    assert sha256(weight("kaiming_normal", seed=2**64 - 1)) != sha256(weight("kaiming_normal", seed=0))
    for seed in (-1, 2**64, 1.0, "1", True, None):
        with pytest.raises(SettingsError, match="seed"):
            Init(seed)
    with pytest.raises(SettingsError, match="Did you mean kaiming_normal"):
        Init(0, "kaiming_norml")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_masked_values_are_the_values_times_the_mask_and_never_minus_zero(distribution):
    init, compared = Init(3, distribution), 0
    for shape in ((1,), (7,), (3, 5), (64, 9, 3, 3), (131, 1009)):
        spec = SeededTensor("w", shape, 0.1, True)
        mask = torch.from_numpy(np.random.default_rng(0).random(shape) < 0.3)
        packed = np.packbits(mask.reshape(-1).numpy(), bitorder="little")
        made = init.masked(spec, packed)
        values = made.tensor() if isinstance(made, Ternary) else made
        expected = init.tensor(spec).where(mask, torch.zeros(()))
        assert torch.equal(values.view(torch.int32), expected.view(torch.int32))
        assert values.untyped_storage().nbytes() == values.nbytes  # nothing more is pickled
        compared += 1
    assert compared == 5


def test_bits_of_three_values_are_taken_from_a_tensor_and_make_it_again():
    init, compared = Init(3), 0
    for shape in ((1,), (7,), (64, 9, 3, 3), (131, 1009)):
        spec = SeededTensor("w", shape, 0.1, True)
        mask = np.random.default_rng(0).random(shape) < 0.3
        made = init.masked(spec, np.packbits(mask.reshape(-1), bitorder="little"))
        found = Ternary.of(made.tensor(), 0.1)
        assert np.array_equal(found.plus, made.plus)
        assert np.array_equal(found.minus, made.minus)
        assert (found.shape, found.scale) == (made.shape, made.scale) == (shape, 0.1)
        assert torch.equal(found.tensor().view(torch.int32), made.tensor().view(torch.int32))
        compared += 1
    assert compared == 4


def test_a_tensor_of_other_values_has_no_such_bits():
    weights = torch.zeros(70_000)
    weights[::3], weights[1::3] = 0.1, -0.1
    assert Ternary.of(weights, 0.1) is not None
    refused = 0
    for position in (0, 65_535, 65_536, 69_999):
        for odd in (0.2, -0.0, float("nan"), float("inf"), 1e-45, float(np.nextafter(np.float32(0.1), 1))):
            other = weights.clone()
            other[position] = odd
            assert Ternary.of(other, 0.1) is None
            refused += 1
    assert refused == 24
    assert Ternary.of(weights.double(), 0.1) is None
    assert Ternary.of(weights, 0.2) is None
    infinite = torch.tensor([0.0, float("inf")])
    assert np.array_equal(Ternary.of(infinite, 1e39).plus, [2])  # as float32 would have it, and no warning


def test_the_page_about_seeded_weights_prints_what_it_says():
    page = (ROOT / "docs" / "seeded-weights.md").read_text(encoding="utf-8")
    program, output = re.search(r"```python\n(.*?)```.*?```\n(.*?)```", page, re.S).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    assert printed.getvalue() == output
    assert re.search(r"^[0-9a-f]{64}$", output, re.M)
    assert all(f"| `{name}`" in page for name in DISTRIBUTIONS)


def test_the_docstrings_example_gives_what_it_says():
    found = doctest.DocTestFinder().find(Init, globs=vars(weights_module))
    results = [doctest.DocTestRunner().run(example) for example in found if example.examples]
    assert [(result.failed, result.attempted) for result in results] == [(0, 2)]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_tensor_of_ones_own_has_any_shape(distribution):
    init = Init(7, distribution)
    long, compared = init.tensor(SeededTensor("adapter", (64,), 0.5)), 0
    for shape in ((), (1,), (0, 3), (3, 0), (5,), (2, 3, 4), [4, 4], torch.Size([64])):
        made = init.tensor(SeededTensor("adapter", shape, 0.5))
        assert made.shape == torch.Size(shape)
        assert (made.dtype, made.device.type, made.is_contiguous()) == (torch.float32, "cpu", True)
        assert torch.equal(made.flatten(), long[: made.numel()])
        table = init.tensor(SeededTensor("adapter", shape, 0.5, masked=False))
        assert table.shape == made.shape
        compared += 1
    assert compared == 8
    assert SeededTensor("adapter", (4, 4), 0.5) == SeededTensor("adapter", (4, 4), 0.5, masked=True)


def test_a_tensor_that_cannot_be_is_refused():
    refused = 0
    for arguments, message in (
        ((3, (2,), 0.5), "seeded tensor 3: give its name as a text"),
        (("\ud800", (2,), 0.5), "give its name as a text that can be written in UTF-8"),
        (("a", 5, 0.5), "of shape 5: give whole numbers"),
        (("a", (2, -1), 0.5), r"of shape \(2, -1\): give whole numbers"),
        (("a", (2.0,), 0.5), "give whole numbers"),
        (("a", (True,), 0.5), "give whole numbers"),
        (("a", "23", 0.5), "give whole numbers"),
        (("a", (2,), 0.0), r"of scale 0\.0: give a positive number"),
        (("a", (2,), -1.0), "positive number"),
        (("a", (2,), float("nan")), "positive number"),
        (("a", (2,), 1e300), "positive number"),
        (("a", (2,), "0.5"), "positive number"),
        (("a", (2,), True), "positive number"),
    ):
        with pytest.raises(SettingsError, match=message):
            Init(0).tensor(SeededTensor(*arguments))
        refused += 1
    assert refused == 13
    for fans, message in (
        ((0, 1), "fan_in=0: give a whole number from 1"),
        ((1, -1), "fan_out=-1: give a whole number from 0"),
        ((1.5, 1), r"fan_in=1\.5"),
    ):
        for distribution in DISTRIBUTIONS:
            with pytest.raises(SettingsError, match=message):
                Init(0, distribution).scale(*fans)
