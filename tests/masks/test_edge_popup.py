import copy
import pickle

import pytest
import timm
import torch
from conftest import make_popup
from published import StraightThrough, sorted_mask
from torch.nn import functional

from rst_hub import EdgePopup, Init, PixelModel, Ticket, create_model
from rst_hub.errors import ArchitectureError, SettingsError
from rst_hub.masks.patterns import kept_count, kept_counts, top_k_mask


def test_masks_equal_those_of_a_full_sort():
    generator = torch.Generator().manual_seed(0)
    cases = 0
    for shape in ((1,), (7, 3), (16, 8, 3, 3), (64, 129)):
        for ratio in (0.001, 0.05, 0.3, 0.5, 0.99, 1.0):
            scores = torch.randn(shape, generator=generator)
            coarse = (scores * 3).round()  # many ties
            for candidate in (scores, coarse, torch.zeros(shape)):
                kept = kept_count(candidate.numel(), ratio)
                mask = top_k_mask(candidate, kept)
                assert int(mask.sum()) == kept
                assert torch.equal(mask, sorted_mask(candidate.abs(), kept)), (shape, ratio)
                cases += 1
    assert cases == 72


def test_memory_layout_changes_no_mask():
    scores = (torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * 4).round()
    for other in (scores.contiguous(memory_format=torch.channels_last), scores.expand(2, -1, -1, -1, -1)[1]):
        assert torch.equal(top_k_mask(other, 100), top_k_mask(scores, 100))
    strided = torch.zeros(16, 16, 3, 3)[:, ::2].copy_(scores)
    assert torch.equal(top_k_mask(strided, 100), top_k_mask(scores, 100))


def test_the_branch_without_a_host_question_agrees():
    # What runs on CUDA (topk, ties counted on the device) has to give the same masks; here it runs on the CPU.
    scores = torch.randn(9, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * 4

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return torch.device("meta")

    cases = [(values, kept) for values in (scores, scores.round()) for kept in (1, 100, 324, 325, 600, 648)]
    for values, kept in cases:
        there = top_k_mask(values.as_subclass(Elsewhere), kept).as_subclass(torch.Tensor)
        assert torch.equal(there, sorted_mask(values.abs(), kept)), kept
    assert len(cases) == 12


def test_scores_of_another_dtype_are_refused():
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        with pytest.raises(SettingsError, match="give float32"):
            top_k_mask(torch.rand(4, 4).to(dtype), 3)


def test_the_kept_count_is_the_published_one():
    cases = [(n, ratio) for n in (1, 9, 100, 36864, 2359296) for ratio in (0.01, 0.05, 0.07, 0.1, 0.15, 0.3, 0.7, 1)]
    for n, ratio in cases:
        assert kept_count(n, ratio) == max(1, n - int((1 - ratio) * n))
    assert len(cases) == 40
    assert kept_count(100, 1) == 100
    assert kept_count(10, 1e-20) == 1


def test_the_erdos_renyi_kernel_keeps_as_many_in_all_and_more_of_small_layers():
    shapes = {"stem": (64, 3, 3, 3), "wide": (512, 512, 3, 3), "side": (128, 64, 1, 1), "head": (10, 512)}
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    cases = 0
    for ratio in (0.01, 0.05, 0.2, 0.5, 0.9, 1.0):
        kept = kept_counts(shapes, ratio, "erk")
        assert abs(sum(kept.values()) - ratio * sum(sizes.values())) <= len(shapes)
        shares = {name: kept[name] / sizes[name] for name in shapes}
        assert max(shares.values()) <= 1
        # Shares below 1 are as the sum of sides over their product.
        below = [name for name in shapes if kept[name] < sizes[name]]
        factors = [shares[name] * sizes[name] / sum(shapes[name]) for name in below]
        assert all(factor == pytest.approx(factors[0], rel=0.02) for factor in factors)
        whole = [name for name in shapes if name not in below]
        assert not below or all(factors[0] * sum(shapes[name]) / sizes[name] >= 0.98 for name in whole)
        cases += 1
        assert kept_counts(shapes, ratio, "uniform") == {name: kept_count(sizes[name], ratio) for name in shapes}
    assert cases == 6
    # By hand, of two layers of which the small one is kept whole: 12 of 20 weights, 4 in it, 8 of 16 in the other.
    assert kept_counts({"a": (2, 2), "b": (4, 4)}, 0.6, "erk") == {"a": 4, "b": 8}
    # 5 of 20: the shares are as 4 / 4 to 8 / 16, so 5 / 12 of 4 and 5 / 24 of 16.
    assert kept_counts({"a": (2, 2), "b": (4, 4)}, 0.25, "erk") == {"a": 2, "b": 4}


def test_layer_ratios_that_are_not_known_are_refused():
    with pytest.raises(SettingsError, match="'erg' are not known"):
        EdgePopup(make_popup().model, Init(0), 0.1, layer_ratios="erg")


def test_the_model_holds_weight_times_mask_and_never_minus_zero():
    popup = make_popup(remaining_ratio=0.2)
    masks = popup.masks()
    assert len(masks) > 10
    for name, mask in masks.items():
        parameter, weight = popup.parameters[name].detach(), popup.weights[name]
        assert int(mask.sum()) == kept_count(mask.numel(), 0.2)
        assert torch.equal(parameter[mask], weight[mask])
        assert not parameter[~mask].any()
        assert not torch.signbit(parameter[~mask]).any()


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_score_gradients_are_those_of_the_published_formulation(architecture):
    kwargs = {"img_size": 32} if architecture == "test_vit" else {}
    popup = make_popup(architecture, Init(0, "kaiming_normal"), 0.3, **kwargs)
    reference = copy.deepcopy(popup.model).double()
    scores = {name: s.detach().double().requires_grad_() for name, s in popup.scores.items()}
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 3])
    weights = {
        name: w.double() * StraightThrough.apply(scores[name].abs(), kept_count(w.numel(), 0.3))
        for name, w in popup.weights.items()
    }
    logits = torch.func.functional_call(reference, weights, (x.double(),))
    functional.cross_entropy(logits, y).backward()
    popup.model.double()
    functional.cross_entropy(popup.model(x.double()), y).backward()
    popup.collect_gradients()
    assert len(scores) > 10
    for name, expected in scores.items():
        assert popup.parameters[name].grad is None
        assert torch.allclose(popup.scores[name].grad.double(), expected.grad, rtol=1e-4, atol=1e-7), name


def test_gradients_accumulate_until_they_are_collected():
    popup = make_popup("test_vit", img_size=32)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole, parts = [], []
    popup.model(x).square().sum().backward()
    popup.collect_gradients()
    whole = {name: s.grad.clone() for name, s in popup.scores.items()}
    for part in x.chunk(2):
        popup.model(part).square().sum().backward()
    popup.collect_gradients()
    parts = {name: s.grad for name, s in popup.scores.items()}
    assert len(parts) > 10
    assert all(torch.allclose(parts[name], whole[name], rtol=1e-3, atol=1e-4) for name in whole)


def test_an_optimizer_step_moves_the_masks():
    popup = make_popup()
    before = popup.masks()
    optimizer = torch.optim.SGD(popup.scores.values(), lr=1.0)
    popup.model(torch.rand(8, 3, 32, 32)).square().sum().backward()
    popup.collect_gradients()
    optimizer.step()
    popup.apply()
    moved = sum(int((mask != before[name]).sum()) for name, mask in popup.masks().items())
    assert moved > 0
    assert all(int(mask.sum()) == int(before[name].sum()) for name, mask in popup.masks().items())


def test_scores_are_seeded_and_keep_the_weights_layout():
    model = create_model("test_resnet", Init(0), num_classes=10).to(memory_format=torch.channels_last)
    one, other = EdgePopup(model, Init(0), 0.1), EdgePopup(model, Init(0), 0.1, score_seed=1)
    name = "layer4.0.conv1.weight"
    assert one.scores[name].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one.scores[name], make_popup().scores[name])
    assert not torch.equal(one.scores[name], other.scores[name])
    bound = (one.scores[name][0].numel()) ** -0.5  # Kaiming uniform with a = sqrt(5)
    assert float(one.scores[name].detach().abs().max()) == pytest.approx(bound, rel=1e-3)


def test_bad_arguments_are_refused():
    model = create_model("test_resnet", Init(0))
    for ratio in (0, -0.1, 1.01, float("nan"), "0.1", None, True):
        with pytest.raises(SettingsError, match="remaining ratio"):
            EdgePopup(model, Init(0), ratio)
    with pytest.raises(SettingsError, match="pattern"):
        EdgePopup(model, Init(0), 0.1, pattern="rows")
    with pytest.raises(SettingsError, match="seed"):
        EdgePopup(model, Init(0), 0.1, score_seed=-1)
    with pytest.raises(ArchitectureError, match="no convolution or linear"):
        EdgePopup(torch.nn.ReLU(), Init(0), 0.1)


def small(init=None, **kwargs):
    return create_model("test_resnet", init or Init(0), num_classes=10, **kwargs)


def trained(model, parameters=None):
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(list(parameters or model.parameters()), lr=0.1)
    functional.cross_entropy(model.train()(x), torch.arange(4)).backward()
    optimizer.step()
    return model


def loaded(model, other):
    model.load_state_dict(other.state_dict())
    return model


def with_neutral_ones_trained(model, leaf):
    parameters = [parameter.requires_grad_() for name, parameter in model.named_parameters() if name.endswith(leaf)]
    return trained(model, parameters)


def with_another_head(model):
    model.reset_classifier(7)
    return model


NOT_RANDOM = {
    "timm's own": (lambda: timm.create_model("test_resnet", num_classes=10), "not made by rst_hub.create_model"),
    "a ticket's": (lambda: Ticket.draw(make_popup()).model(), "not made by rst_hub.create_model"),
    "in a wrapper": (lambda: PixelModel(make_popup().model), "not a wrapper"),
    "of another seed": (lambda: small(Init(1)), "seed=1"),
    "of another distribution": (lambda: small(Init(0, "kaiming_normal")), "kaiming_normal"),
    "trained": (lambda: trained(small()), r"\['conv1.0.weight'"),
    "trained after a search": (lambda: trained(make_popup().model), r"\['conv1.0.weight'"),
    "of loaded weights": (lambda: loaded(small(), small(Init(1))), r"\['conv1.0.weight'"),
    "trained in half precision": (lambda: trained(small()).bfloat16(), r"\['conv1.0.weight'"),
    "of a new classifier": (lambda: with_another_head(small()), r"\['fc.weight'\] are of other layers"),
    "of trained norms": (lambda: with_neutral_ones_trained(small(), "bn1.weight"), r"\['conv1.1.weight'|bn1.weight'"),
    "of trained biases": (lambda: with_neutral_ones_trained(small(), "fc.bias"), r"\['fc.bias'\]"),
}


@pytest.mark.parametrize("kind", NOT_RANDOM)
def test_weights_that_a_seed_did_not_make_are_not_overwritten(kind):
    make, match = NOT_RANDOM[kind]
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SettingsError, match=match):
        EdgePopup(model, Init(0), 0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_no_model_and_no_init_is_refused():
    for model, init in (("test_resnet", Init(0)), (small(), None), (small(), 0), (Init(0), small())):
        with pytest.raises(SettingsError, match="give a model and its Init"):
            EdgePopup(model, init, 0.1)


def test_a_moved_table_of_positions_is_named():
    model = create_model("test_vit", Init(0), num_classes=10, img_size=32)
    with torch.no_grad():
        model.pos_embed[0, 0, 0] += 1
    with pytest.raises(SettingsError, match=r"'pos_embed'.*masks over trained weights are not supported yet"):
        EdgePopup(model, Init(0), 0.1)


def test_a_neutral_parameter_that_was_changed_since_is_not_drawn():
    popup = make_popup()
    with torch.no_grad():
        popup.model.fc.bias.add_(1)
    with pytest.raises(SettingsError, match=r"no longer what create_model made: its tensors \['fc.bias'\]"):
        Ticket.draw(popup)


@pytest.mark.parametrize("distribution", ["signed_kaiming_constant", "kaiming_normal"])
def test_a_random_network_may_be_masked_moved_and_cast(distribution):
    init = Init(0, distribution)
    plain = EdgePopup(small(init), init, 0.1)
    ways = {
        "masked": lambda model: model,
        "channels last": lambda model: model.to(memory_format=torch.channels_last),
        "bfloat16": lambda model: model.bfloat16(),
        "half": lambda model: model.half(),
        "double": lambda model: model.double(),
        "there and back": lambda model: model.half().float(),
        "twice": lambda model: model.bfloat16().half(),
        "copied": copy.deepcopy,
        "pickled": lambda model: pickle.loads(pickle.dumps(model)),
        "statistics moved": lambda model: model.train()(torch.rand(4, 3, 32, 32)) is not None and model,
        "frozen": lambda model: model.requires_grad_(False),
        "read back": lambda model: loaded(small(init), model),
    }
    for way, change in ways.items():
        model = change(EdgePopup(small(init), init, 0.3).model)
        popup = EdgePopup(model, init, 0.1)
        assert all(torch.equal(mask, plain.masks()[name]) for name, mask in popup.masks().items()), way
        assert all(torch.equal(weight, plain.weights[name]) for name, weight in popup.weights.items()), way
    assert len(ways) == 12
