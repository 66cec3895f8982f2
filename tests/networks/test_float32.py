"""Networks are float32, with the same bits, whatever torch makes by default."""

import threading
from contextlib import contextmanager

import pytest
import timm
import torch
from conftest import described, make_popup

import rst_hub
from rst_hub import R2S, EdgePopup, Init, PixelModel, ThreatModel, Ticket, TicketPool, create_model
from rst_hub.float32 import in_float32
from rst_hub.networks.build import build_masked, state_layout
from rst_hub.networks.dense import load_dense
from rst_hub.tickets.export import export

DTYPES = [torch.float64, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LINF = ThreatModel("Linf", 8 / 255)


@contextmanager
def by_default(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype  # left as it was
    finally:
        torch.set_default_dtype(torch.float32)


def tensors_of(model):
    """Return every parameter and buffer of a model, also the buffers that its state dict leaves out."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def same(one, other):
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key]) for key, value in one.items()
    )


NETWORKS = {
    "test_resnet": {},
    "test_vit": {"img_size": 32},
    "vit_relpos_small_patch16_224": {},  # coordinates that are logarithms of whole numbers
    "eva02_tiny_patch14_224": {},  # rotary frequencies, for which timm asks what the default dtype is
    "efficientformerv2_s0": {},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_built_the_same(name):
    def built():
        return tensors_of(build_masked(name, NETWORKS[name])), tensors_of(create_model(name, Init(0), **NETWORKS[name]))

    (masked, created), layout = built(), state_layout(name, NETWORKS[name])
    for dtype in DTYPES:
        with by_default(dtype):
            found = built()
            assert state_layout(name, NETWORKS[name]) == layout
        assert same(found[0], masked), dtype
        assert same(found[1], created), dtype
    assert len(created) > 20


def drawn(ratio=0.1, architecture="test_resnet", **kwargs):
    """Return a ticket after a step of a search, and what the step's gradients were."""
    model = described(create_model(architecture, Init(0), num_classes=10, **kwargs))
    popup = EdgePopup(model, Init(0), ratio)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    PixelModel(model).train()(x).square().sum().backward()
    popup.collect_gradients()
    gradients = {name: scores.grad for name, scores in popup.scores.items()}
    torch.optim.SGD(popup.scores.values(), lr=1.0).step()
    popup.apply()
    return Ticket.draw(popup), gradients | {f"scores.{name}": scores for name, scores in popup.scores.items()}


def test_a_ticket_lives_the_same_life(tmp_path):
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    arguments = {"pretrained_cfg": {"source": "local-dir"}, "pretrained": True, "num_classes": 3}

    def life(folder):
        found = {}
        for name, kwargs in (("test_vit", {"img_size": 32}), ("test_nfnet", {})):
            ticket, found[name, "step"] = drawn(0.1, name, **kwargs)
            ticket.verify()
            sparser, _ = drawn(0.05, name, **kwargs)
            ticket.save(folder / name)
            model = rst_hub.from_pretrained(folder / name)
            found[name, "model"] = tensors_of(model)
            features = rst_hub.from_pretrained(folder / name, features_only=True)
            found[name, "features"] = tensors_of(features)
            r2s = R2S([ticket, sparser], pool=TicketPool())
            with torch.inference_mode():
                outputs = {"one": PixelModel(model)(x), "r2s": r2s.all_logits(x), "expected": r2s.expected(x)}
                found[name, "outputs"] = {**outputs, "drawn": r2s(x)[:0]}
            arguments["pretrained_cfg"]["file"] = str(folder / name)
            torch.manual_seed(0)
            found[name, "head"] = tensors_of(timm.create_model("rst", **arguments))
            assert export(ticket, folder / f"{name}-dense", "safetensors") < 1e-3
            found[name, "dense"] = tensors_of(load_dense(folder / f"{name}-dense"))
        return found

    expected = life(tmp_path / "float32")
    assert len(expected) == 12
    for dtype in DTYPES:
        with by_default(dtype):
            found = life(tmp_path / str(dtype))
        for key, tensors in expected.items():
            assert same(found[key], tensors), (dtype, key)
        files = {path.name: path.read_bytes() for path in (tmp_path / "float32" / "test_vit").iterdir()}
        assert {p.name: p.read_bytes() for p in (tmp_path / str(dtype) / "test_vit").iterdir()} == files


def test_attacks_give_the_same_pictures():
    network = PixelModel(make_popup().model.eval())
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network(x).argmax(1)
    l2 = ThreatModel("L2", 0.5)

    def attacked():
        noise = torch.Generator().manual_seed(1)
        return {
            "fgsm": rst_hub.fgsm(network, x, y, LINF),
            "fgsm_rs": rst_hub.fgsm_rs(network, x, y, LINF, generator=noise),
            "pgd": rst_hub.pgd(network, x, y, LINF, steps=3, generator=noise),
            "pgd L2": rst_hub.pgd(network, x, y, l2, steps=3, generator=noise),
            "cw_linf": rst_hub.cw_linf(network, x, y, LINF, steps=3, generator=noise),
            "cw_l2": rst_hub.cw_l2(network, x, y, steps=3, search_steps=2),
            "square": rst_hub.square(network, x, y, LINF, max_queries=20, generator=noise),
            "square L2": rst_hub.square(network, x, y, l2, max_queries=20, generator=noise),
            "bandits": rst_hub.bandits(network, x, y, LINF, max_queries=20, generator=noise),
            "arc": rst_hub.arc(network, x, y, LINF, steps=3, generator=noise),
        }

    expected = attacked()
    assert len(expected) == 10
    for dtype in DTYPES:
        with by_default(dtype):
            found = attacked()
        different = [name for name, pictures in expected.items() if not torch.equal(found[name], pictures)]
        assert different == [], dtype
        assert {pictures.dtype for pictures in found.values()} == {torch.float32}


@pytest.mark.slow
def test_autoattack_gives_the_same_pictures():
    pytest.importorskip("pyautoattack")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 16), torch.nn.ReLU(), torch.nn.Linear(16, 6))
    x = torch.rand(3, 3, 4, 4)
    y = network(x).argmax(1)

    def attacked():
        return rst_hub.attacks.autoattack(network, x, y, LINF, generator=torch.Generator().manual_seed(0))

    expected = attacked()
    for dtype in DTYPES:
        with by_default(dtype):
            assert torch.equal(attacked(), expected), dtype
    assert expected.dtype == torch.float32


def test_another_thread_goes_on_with_its_default():
    building, seen = threading.Event(), set()

    def make_tensors():
        building.wait(10)
        for _ in range(300):
            seen.add(torch.zeros(2).dtype)

    with by_default(torch.float64):
        other = threading.Thread(target=make_tensors)
        other.start()
        with in_float32():
            building.set()
            for _ in range(300):
                assert torch.zeros(2).dtype == torch.float32
            other.join()
    assert seen == {torch.float64}


@dtypes
def test_what_python_numbers_and_whole_ones_become_is_float32_with_its_own_bits(dtype):
    steps = torch.arange(7)
    made = {
        "tensor": lambda: torch.tensor([0.1, 2.5]),
        "a whole one": lambda: torch.tensor([1, 2]),
        "full": lambda: torch.full((3,), 0.1),
        "arange": lambda: torch.arange(0, 1, 0.1),
        "linspace": lambda: torch.linspace(0, 1, 7),
        "quotient": lambda: steps / 3,
        "product": lambda: 0.1 * steps,
        "power": lambda: 0.3**steps,
        "logarithm": lambda: torch.log2(1 + steps),
        "sine": lambda: steps.sin(),
        "asked for": lambda: torch.ones(2, dtype=torch.get_default_dtype()),
        "numpy's": lambda: torch.as_tensor(steps.numpy() / 3),
        "comparison": lambda: steps > 3,
        "of a size in a tensor": lambda: torch.zeros(steps.max()),
        "half": lambda: torch.ones(2, dtype=torch.int8).float() / 3,
    }
    expected = {name: make() for name, make in made.items()}
    torch.manual_seed(0)
    drawn_ones = torch.rand(3), torch.randn(3)
    with by_default(dtype), in_float32():
        found = {name: make() for name, make in made.items()}
        torch.manual_seed(0)
        again = torch.rand(3), torch.randn(3)
    assert same(found, expected)
    assert len(found) == 15
    assert all(torch.equal(*pair) for pair in zip(drawn_ones, again, strict=True))
