"""The checks of benchmarks/architectures.py on timm's own tiny networks, and on a small one of every awkward family."""

import architectures
import pytest
import timm

AWKWARD = {
    "mobilenetv3_small_050": "squeeze and excitation, hard activations",
    "swiftformer_xs": "a bare projection w_g",
    "tf_efficientnet_cc_b0_4e": "CondConv2d",
    "convnextv2_atto": "global response norm",
    "efficientvim_m1": "gates and a state-space mixer",
    "levit_128s": "attention biases, batch norm behind linear layers",
    "convit_tiny": "gated positional attention",
    "xcit_nano_12_p8_224": "temperatures, class attention",
    "deit_tiny_distilled_patch16_224": "two tokens, two heads",
    "vit_tiny_r_s16_p8_224": "a weight-standardised stem in front of a transformer",
    "pit_ti_224": "tokens beside maps",
    "coat_lite_tiny": "four tokens, shared weights",
    "gmlp_ti16_224": "a gated mixer",
    "poolformer_s12": "layer scales of 1e-5",
    "hgnetv2_b0": "learnable affine blocks, dropout by default",
    "edgenext_xx_small": "cross-covariance attention",
    "repvit_m1": "parallel branches, each behind batch norm",
    "csatv2": "a LayerNorm that is always 0",
}
SLOW = {
    "halonet_h1": "relative positions",
    "sequencer2d_s": "LSTM",
    "resmlp_12_224": "affine layers, no norm",
    "vgg11": "no norm",
    "mvitv2_tiny": "relative tables, pooled attention",
    "cait_xxs24_224": "layer scales, talking heads",
    "beit_base_patch16_224": "q and v biases beside qkv",
    "samvit_base_patch16_224": "4-D features",
    "vit_small_patch16_rope_mixed_224": "rotary frequencies",
    "vit_dwee_patch16_reg1_gap_256": "differential attention",
    "caformer_s18": "StarReLU, residual scales",
    "resnetv2_50d_frn": "filter response norm",
}


TINY = timm.list_models("test_*")


def run(names):
    """Try the networks out in two processes; return a row for each by its name, and the faults without a reason."""
    rows = architectures.run(architectures.try_out, names, 2, "architectures")
    faults = [(row, fault) for row in rows for fault in row["faults"]]
    unexpected = [(row["model"], fault) for row, fault in faults if not architectures.reason(row, fault)]
    return {row["model"]: row for row in rows}, unexpected


@pytest.fixture(scope="module")
def tried():
    return run([*TINY, *(name for name in AWKWARD if timm.is_model(name))])


def test_timms_own_tiny_networks(tried):
    rows, _ = tried
    tiny = [rows[name] for name in TINY]
    assert len(tiny) >= 14
    assert all(row["faults"] == [] and row["tensors"] > 5 for row in tiny)
    assert all(row["features_only"] for row in tiny)


def test_one_small_model_of_every_awkward_family(tried):
    rows, unexpected = tried
    assert unexpected == []
    covered = [name for name in AWKWARD if name in rows]
    assert len(covered) >= 15
    assert covered == list(AWKWARD) or tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31)


def test_a_fault_has_a_reason_only_where_one_is_known():
    row = {"model": "csatv2"}
    assert "single channel" in architectures.reason(row, "no gradient stages.0.0.attn.attn.qkv.weight")
    assert architectures.reason(row, "no gradient stages.0.0.conv.weight") is None
    assert architectures.reason({"model": "resnet18"}, "no gradient stages.0.0.attn.attn.qkv.weight") is None


@pytest.mark.slow
def test_the_larger_ones():
    names = [name for name in SLOW if timm.is_model(name)]
    rows, unexpected = run(names)
    assert unexpected == []
    assert len(rows) == len(names) >= 10


def test_every_registered_name_is_counted_or_has_its_error():
    row = architectures.count("vit_tiny_patch16_224")
    assert (row["parameters"], row["classes"]) == (5_717_416, 1000)
    assert row["on_meta"] == (tuple(map(int, timm.__version__.split(".")[:3])) >= (1, 0, 20))
    biases_and_norms = 192 + 12 * (192 + 192 + 576 + 192 + 192 + 192 + 768 + 192) + 192 + 192 + 1000
    assert row["masked"] == row["parameters"] - 192 - 197 * 192 - biases_and_norms  # a token, a table of positions
    chosen = architectures.choose([row, {**row, "model": "larger", "parameters": 10**9}])
    assert "vit_tiny_patch16_224" in chosen
    assert "larger" not in chosen
    assert set(architectures.AWKWARD) < set(chosen)
