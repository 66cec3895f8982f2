import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from conftest import LABELS, described
from hub_server import add_commit
from torch import nn

from rst_hub import EdgePopup, Init, PixelModel, Ticket, create_model
from rst_hub.errors import ArchitectureError, SettingsError
from rst_hub.networks.architectures import size_arguments
from rst_hub.networks.build import build_masked, build_model, build_unfilled, state_layout
from rst_hub.networks.dense import load_dense, load_timm, save_dense
from rst_hub.networks.inputs import describe_input, set_input
from rst_hub.networks.unfilled import fill


def test_the_weights_are_the_seeds_and_nothing_depends_on_torchs_random_state():
    torch.manual_seed(1)
    with pytest.raises(ArchitectureError, match="'seed' cannot go into a ticket"):
        create_model("test_vit", Init(5), seed=5)
    one = create_model("test_vit", Init(5), img_size=32)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    other = create_model("test_vit", Init(5), img_size=32)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert "pos_embed" in one.rst_source.seeded
    assert not torch.equal(create_model("test_vit", Init(6), img_size=32).pos_embed, one.pos_embed)
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_created_model_is_a_plain_timm_model():
    model = create_model("test_resnet", Init(0), num_classes=4)
    reference = timm.create_model("test_resnet", num_classes=4)
    assert type(model) is type(reference)
    assert list(model.state_dict()) == list(reference.state_dict())
    assert pickle.loads(pickle.dumps(model)).rst_source == model.rst_source
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 4)


def test_unknown_architectures_are_refused_with_near_names():
    for name, near in (("resnet81", "resnet18"), ("vit_tinny_patch16_224", "vit_tiny_patch16_224")):
        with pytest.raises(ArchitectureError, match=near):
            create_model(name, Init(0))
    with pytest.raises(ArchitectureError, match="Did you mean resnet18"):
        create_model("hf-hub:timm/resnet18", Init(0))
    with pytest.raises(SettingsError, match="give an Init"):
        create_model("test_resnet", 0)
    dangerous = ("rst", "hf-hub:timm/resnet18", "local-dir:/tmp", "resnet18.a1_in1k", "../resnet18", "", None, 3)
    for name in dangerous:
        with pytest.raises(ArchitectureError, match="no architecture"):
            create_model(name, Init(0))


def test_only_harmless_arguments_go_through():
    refused = {
        "checkpoint_path": "/etc/passwd",
        "pretrained": True,
        "pretrained_cfg": {"url": "http://127.0.0.1/x"},
        "cache_dir": "/tmp",
        "features_only": True,
        "scriptable": True,
        "num_classes": 10**9,
        "in_chans": "3",
        "img_size": (32, -1),
        "drop_rate": 2.0,
        "global_pool": "os.system",
    }
    for name, value in refused.items():
        with pytest.raises(ArchitectureError, match=name):
            create_model("test_resnet", Init(0), **{name: value})
    with pytest.raises(ArchitectureError, match="cannot build test_resnet with"):
        create_model("test_resnet", Init(0), img_size=32)


def test_the_layout_is_known_without_allocating():
    layout = state_layout("vit_large_patch16_224", {"num_classes": 10})
    assert layout["head.weight"] == ((10, 1024), torch.float32)
    assert state_layout("test_resnet", {})["bn1.num_batches_tracked"] == ((), torch.int64)


def test_image_size_arguments():
    assert size_arguments("vit_tiny_patch16_224", 32) == {"img_size": 32}
    assert size_arguments("resnet18", 32) == {}


def test_a_described_input_is_what_timm_resolves():
    model = create_model("test_resnet", Init(0), num_classes=10)
    describe_input(model, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), LABELS)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"][-2:] in ((32, 32), [32, 32])
    assert (list(config["mean"]), list(config["std"])) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert timm.data.create_transform(**config)(__import__("PIL.Image").Image.new("RGB", (40, 40))).shape == (3, 32, 32)


def test_a_pretrained_cfg_cannot_carry_a_url_or_a_file():
    model = create_model("test_resnet", Init(0))
    for entry in (
        {"url": "http://127.0.0.1"},
        {"file": "/x"},
        {"custom_load": True},
        {"std": [0, 1, 1]},
        {"mean": "a"},
    ):
        with pytest.raises(ArchitectureError, match=next(iter(entry))):
            set_input(model, entry)


def test_a_class_count_that_is_not_the_models_is_refused():
    model = create_model("test_resnet", Init(0), num_classes=4)
    for entry in ({"num_classes": 5}, {"label_names": ["a"]}):
        with pytest.raises(ArchitectureError, match="for a model of 4"):
            set_input(model, entry)
    with pytest.raises(ArchitectureError, match="3 classes were given for a model of 4"):
        describe_input(model, 32, (0.5,) * 3, (0.5,) * 3, list("abc"))


def test_labels_for_a_model_without_a_classifier_are_refused():
    encoder = create_model("test_resnet", Init(0), num_classes=0)
    with pytest.raises(ArchitectureError, match="has no classifier for 10 classes"):
        describe_input(encoder, 32, (0.5,) * 3, (0.5,) * 3, LABELS)


def test_models_without_a_classifier_or_with_maps_as_outputs_are_tickets_too():
    for kwargs, shape in (
        ({"num_classes": 0}, (1, 96)),
        ({"num_classes": 0, "global_pool": ""}, (1, 96, 1, 1)),
        ({"num_classes": 5, "in_chans": 2}, (1, 5)),
    ):
        popup = EdgePopup(described(create_model("test_resnet", Init(0), **kwargs)), Init(0), 0.3)
        model = Ticket.draw(popup).model()
        assert model(torch.rand(1, kwargs.get("in_chans", 3), 32, 32)).shape == shape
        assert Ticket.draw(popup).timm_kwargs == kwargs


def test_dropout_is_off_in_a_search_and_back_in_its_ticket():
    model = create_model("test_vit", Init(0), num_classes=10, img_size=32, drop_rate=0.5, drop_path_rate=0.5).train()
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(model(x), model(x))
    ticket = Ticket.draw(EdgePopup(described(model), Init(0), 0.3))
    assert ticket.timm_kwargs["drop_rate"] == ticket.timm_kwargs["drop_path_rate"] == 0.5
    tuned = ticket.model().train()
    assert not torch.equal(tuned(x), tuned(x))
    assert torch.equal(tuned.eval()(x), model.eval()(x))


def test_a_created_model_describes_its_own_input():
    for kwargs, size in (({}, [3, 160, 160]), ({"in_chans": 1}, [1, 160, 160])):
        cfg = create_model("test_resnet", Init(0), num_classes=7, **kwargs).pretrained_cfg
        assert (cfg["input_size"], cfg["num_classes"], len(cfg["mean"]), len(cfg["std"])) == (size, 7, size[0], size[0])
    assert create_model("test_vit", Init(0), img_size=32).pretrained_cfg["input_size"] == [3, 32, 32]
    bare = torch.nn.Linear(2, 2)
    bare.pretrained_cfg = {}
    with pytest.raises(ArchitectureError, match="no mean"):
        PixelModel(bare)


def test_pixels_are_normalised_inside():
    model = create_model("test_resnet", Init(0), num_classes=10).eval()
    describe_input(model, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), LABELS)
    x = torch.rand(2, 3, 32, 32)
    normal = torch.stack([(x[:, c] - m) / s for c, (m, s) in enumerate(((0.1, 0.4), (0.2, 0.5), (0.3, 0.6)))], 1)
    assert torch.allclose(PixelModel(model)(x), model(normal), atol=1e-5)
    assert list(PixelModel(model).state_dict()) == [f"model.{name}" for name in model.state_dict()]


def test_a_dense_model_is_saved_in_timms_form(tmp_path):
    model = build_model("test_resnet", {"num_classes": 10}, seed=3).to(memory_format=torch.channels_last)
    describe_input(model, 32, (0.3,) * 3, (0.3,) * 3, LABELS)
    save_dense(model, tmp_path / "dense", "test_resnet", {"num_classes": 10}, {"command": "recipes/train.py"})
    loaded = load_dense(tmp_path / "dense")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    if hasattr(timm.models, "load_model_config_from_path") or tuple(map(int, timm.__version__.split(".")[2:3])) >= (
        20,
    ):
        again = timm.create_model(f"local-dir:{tmp_path / 'dense'}", pretrained=True)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    (tmp_path / "dense" / "model.safetensors").write_bytes(b"1")
    with pytest.raises(ArchitectureError, match="holds no dense model"):
        load_dense(tmp_path / "dense")


def test_timms_own_models_are_loaded_by_their_names(tmp_path):
    model = build_model("test_resnet", {"num_classes": 10}, seed=0)
    describe_input(model, 32, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3), LABELS)
    save_dense(model, tmp_path / "dense", "test_resnet", {"num_classes": 10})
    add_commit("org/dense", tmp_path / "dense")
    loaded = load_timm("hf-hub:org/dense")
    assert not loaded.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    for name in ("resnet81", "hf-hub:org/absent", "resnet18.no_such_tag"):
        with pytest.raises(ArchitectureError, match="timm cannot load"):
            load_timm(name)


@pytest.mark.parametrize(
    "architecture", ["test_resnet", "test_vit", "test_nfnet", "coat_lite_tiny", "vit_relpos_small_patch16_224"]
)
def test_a_model_built_without_values_and_filled_is_timms_own(architecture):
    kwargs = {"num_classes": 3}
    whole = build_masked(architecture, kwargs)
    state = torch.random.default_generator.get_state()
    model = build_unfilled(architecture, kwargs)
    assert torch.equal(torch.random.default_generator.get_state(), state)  # no random number was drawn
    assert any(parameter.is_meta for parameter in model.parameters())
    assert [(n, t.shape, t.dtype) for n, t in model.state_dict().items()] == [
        (n, t.shape, t.dtype) for n, t in whole.state_dict().items()
    ]
    fill(model, {name: tensor.clone() for name, tensor in whole.state_dict().items()})
    compared = 0
    for of in (nn.Module.named_parameters, nn.Module.named_buffers):  # the buffers outside of the state dict too
        own, theirs = (list(of(one, remove_duplicate=False)) for one in (model, whole))
        for (name, tensor), (other, expected) in zip(own, theirs, strict=True):
            assert name == other
            assert torch.equal(tensor, expected), name
            assert (tensor.requires_grad, tensor.stride()) == (expected.requires_grad, expected.stride()), name
            compared += 1
    assert compared > 15
    assert len(list(model.parameters())) == len(list(whole.parameters()))  # what was shared still is
    x = torch.rand(2, 3, *whole.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        assert torch.equal(model.eval()(x), whole.eval()(x))


@pytest.mark.parametrize("build_one", [build_unfilled, build_masked])
def test_threads_build_at_once_and_others_draw_their_own_random_numbers(build_one):
    torch.manual_seed(0)
    expected = torch.rand(2000)
    torch.manual_seed(0)
    drawn = []

    def build():
        for _ in range(5):
            model = build_one("test_resnet", {})
            assert model.fc.weight.is_meta == (build_one is build_unfilled)
        return 0.0 if model.fc.weight.is_meta else float(model.fc.weight.detach().double().norm())

    with ThreadPoolExecutor(4) as pool:
        building = [pool.submit(build) for _ in range(4)]
        for _ in range(2000):
            drawn.append(torch.rand(1))
        found = {done.result() for done in building}
    assert len(found) == 1
    assert (found == {0.0}) == (build_one is build_unfilled)
    assert torch.equal(torch.cat(drawn), expected)
    assert not torch.empty(3).is_meta


def test_an_architecture_that_asks_for_values_while_it_is_built_gets_them(monkeypatch):
    create = timm.create_model

    def asks_for_a_value(*arguments, **kwargs):
        model = create(*arguments, **kwargs)
        model.largest = float(model.fc.weight.detach().abs().max())
        return model

    def keeps_a_tensor(*arguments, **kwargs):
        model = create(*arguments, **kwargs)
        model.start = [torch.empty(3).uniform_()]
        return model

    def keeps_one_that_was_real(*arguments, **kwargs):
        model = create(*arguments, **kwargs)
        model.start = torch.zeros(3).uniform_()
        return model

    monkeypatch.setattr(timm, "create_model", asks_for_a_value)
    assert build_unfilled("test_resnet", {}).largest == build_masked("test_resnet", {}).largest > 0
    monkeypatch.setattr(timm, "create_model", keeps_a_tensor)
    assert torch.equal(build_unfilled("test_resnet", {}).start[0], build_masked("test_resnet", {}).start[0])
    monkeypatch.setattr(timm, "create_model", keeps_one_that_was_real)
    assert torch.equal(build_unfilled("test_resnet", {}).start, build_masked("test_resnet", {}).start)


def test_a_tensor_that_is_filled_while_it_is_built_is_real(monkeypatch):
    create = timm.create_model

    def fills(*arguments, **kwargs):
        model = create(*arguments, **kwargs)
        model.start = [torch.empty(3).fill_(2.0), torch.empty(3).zero_().add_(1), torch.empty(3).copy_(torch.arange(3))]
        model.start[0][1:] *= 2
        return model

    monkeypatch.setattr(timm, "create_model", fills)
    model = build_unfilled("test_resnet", {})
    assert model.fc.weight.is_meta
    assert [tensor.tolist() for tensor in model.start] == [[2, 4, 4], [1, 1, 1], [0, 1, 2]]
