"""An R2S where it is taken for one model: attacked or measured as such, compiled, traced, exported, pickled."""

import copy
import functools
import io
import pickle
import warnings

import pytest
import torch
from conftest import make_popup
from torch import nn

import rst_hub.attacks.autoattack as autoattack
from rst_hub import (
    R2S,
    PixelModel,
    ThreatModel,
    Ticket,
    TicketPool,
    bandits,
    clean_accuracy,
    cw_l2,
    cw_linf,
    fgsm,
    fgsm_rs,
    honesty_flags,
    pgd,
    robust_accuracy,
    square,
    transfer_matrix,
)
from rst_hub.attacks.arc import arc
from rst_hub.attacks.gradient import kl_pgd
from rst_hub.attacks.names import named_attack
from rst_hub.attacks.randomised import warned_of_draws
from rst_hub.errors import SettingsError
from rst_hub.evaluation.accuracy import evaluate, outcomes
from rst_hub.evaluation.sanity import inspect_model

BUDGET = ThreatModel("Linf", 2 / 255)
POINTS_TO = r"list\(r2s.members\), or \[PixelModel\(m\) for m in r2s.members\]"


@pytest.fixture(scope="module")
def tickets():
    return [Ticket.draw(make_popup(remaining_ratio=ratio)) for ratio in (0.05, 0.1, 0.3)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(count=6):
    return torch.rand(count, 3, 32, 32, generator=seeded())


def batches(count=3, size=4):
    return [(x, torch.arange(size)) for x in pixels(count * size).split(size)]


def quick(attack):
    return functools.partial(attack, threat_model=BUDGET, **({"steps": 1} if attack is pgd else {}))


def lambda_attack(model, x, y):
    return pgd(model, x, y, BUDGET, steps=1)


ATTACKED = {
    "robust_accuracy": lambda model: robust_accuracy(model, batches(), quick(pgd)),
    "robust_accuracy, an attack of one's own": lambda model: robust_accuracy(model, batches(), lambda_attack),
    "outcomes": lambda model: outcomes(model, batches(), quick(fgsm)),
    "transfer_matrix": lambda model: transfer_matrix([model], batches(), quick(fgsm)),
    "honesty_flags": lambda model: honesty_flags(model, batches(2, 1), BUDGET),
    "inspect_model": lambda model: inspect_model(model, *batches(1)[0]),
    "a named attack": lambda model: named_attack("pgd1", BUDGET, 32)(model, *batches(1)[0]),
    "judges": lambda model: evaluate(nn.Flatten(), [(0, *batches(1)[0])], lambda *given: given[1], judges=[model]),
    "pgd": lambda model: quick(pgd)(model, *batches(1)[0]),
    "kl_pgd": lambda model: quick(kl_pgd)(model, *batches(1)[0], steps=1),
    "fgsm": lambda model: quick(fgsm)(model, *batches(1)[0]),
    "fgsm_rs": lambda model: quick(fgsm_rs)(model, *batches(1)[0]),
    "cw_linf": lambda model: quick(cw_linf)(model, *batches(1)[0], steps=1),
    "cw_l2": lambda model: cw_l2(model, *batches(1)[0], steps=1),
    "bandits": lambda model: quick(bandits)(model, *batches(1)[0], max_queries=2),
    "square": lambda model: quick(square)(model, *batches(1)[0], max_queries=2),
    "arc": lambda model: quick(arc)(model, *batches(1)[0], steps=1),
}
MEASURED = {
    "clean_accuracy": lambda model: clean_accuracy(model, batches()),
    "outcomes": lambda model: outcomes(model, batches()),
}


@pytest.mark.parametrize("name", [*ATTACKED, *(f"clean: {name}" for name in MEASURED)])
def test_it_warns_once_a_call_and_points_to_the_members(tickets, name):
    call = MEASURED[name[7:]] if name.startswith("clean: ") else ATTACKED[name]
    r2s = R2S(tickets, generator=seeded())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call(PixelModel(r2s))
    (warning,) = seen
    assert warning.category is UserWarning
    assert warning.filename == __file__  # the line of who calls
    text = str(warning.message)
    assert ("one random draw" if name.startswith("clean: ") else "looks more robust than it is") in text
    assert "list(r2s.members), or [PixelModel(m) for m in r2s.members]" in text
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call(PixelModel(r2s.members[0]))
    assert seen == []


class Hiding(nn.Module):
    """Keeps another module where no walk over modules finds it."""

    def __init__(self, module):
        super().__init__()
        self.hidden = [module]

    def forward(self, x):
        return self.hidden[0](x)


HIDDEN = {
    "a function of one's own": lambda r2s: lambda x: r2s((x - 0.3) / 0.25),
    "a module's plain list": Hiding,
    "a list of functions": lambda r2s: [lambda x: r2s(x)],
    "found by the walk too": lambda r2s: [PixelModel(r2s), lambda x: r2s(x)],
}


@pytest.mark.parametrize("name", [*ATTACKED, *(f"clean: {name}" for name in MEASURED)])
def test_a_draw_behind_what_says_not_what_it_calls_is_warned_of_once_a_call(tickets, name):
    call = MEASURED[name[7:]] if name.startswith("clean: ") else ATTACKED[name]
    r2s = R2S(tickets, generator=seeded())
    hidden = [(what, hide(r2s)) for what, hide in HIDDEN.items()]
    one_model = name in ("transfer_matrix", "judges")  # which stand in lists of their own
    told = 0
    for what, model in hidden:
        if isinstance(model, list) and one_model:
            continue
        for _ in range(2):  # each call tells it again
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                call(model)
            assert [(one.category, one.filename) for one in seen] == [(UserWarning, __file__)], what
            text = str(seen[0].message)
            assert ("one random draw" if name.startswith("clean: ") else "looks more robust than it is") in text
            assert "list(r2s.members), or [PixelModel(m) for m in r2s.members]" in text
            told += 1
    assert told == (4 if one_model else 8)


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_plain_use_of_an_r2s_and_its_exact_mean_behind_a_function_are_not_warned_of(tickets, per):
    r2s = R2S(tickets, generator=seeded(), per=per)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call = ATTACKED["robust_accuracy"]
        for exact in (lambda x: r2s.expected(x).log(), Hiding(r2s.members[0]), [lambda x: r2s.members[0](x)]):
            call(exact)
        r2s(pixels())
        r2s.draw(3)
        assert seen == []
        with pytest.raises(ZeroDivisionError):
            robust_accuracy(r2s, batches(), lambda *given: 1 / 0)
        seen.clear()
        PixelModel(r2s)(pixels())  # after a call that failed
    assert seen == []


def test_a_hidden_draw_of_uneven_members_says_how_to_weigh_them(tickets):
    r2s = R2S(tickets, probabilities=[0.5, 0.25, 0.25], generator=seeded())
    with pytest.warns(UserWarning, match="equally likely, which these are not"):
        fgsm(lambda x: r2s(x), *batches(1)[0], ThreatModel(eps=0))


def test_autoattack_warns_too(tickets):
    pytest.importorskip("pyautoattack")
    with pytest.warns(UserWarning, match=POINTS_TO):
        assert autoattack(R2S(tickets), *batches(1)[0], ThreatModel(eps=0)).shape == (4, 3, 32, 32)


def test_it_is_found_in_any_wrapper_and_list_and_its_members_are_what_they_should_be(tickets):
    r2s = R2S(tickets, generator=seeded())
    x, y = batches(1)[0]
    wrapped = (r2s, nn.Sequential(r2s), nn.DataParallel(PixelModel(r2s)), [PixelModel(r2s)], (r2s.members[0], r2s))
    methods = (r2s.forward, r2s.__call__, functools.partial(r2s), functools.partial(PixelModel(r2s).forward))
    for model in (*wrapped, nn.ModuleList([r2s]), *methods, [r2s.forward]):
        with pytest.warns(UserWarning, match=POINTS_TO):
            fgsm(model, x, y, ThreatModel(eps=0))
    with pytest.warns(UserWarning, match=POINTS_TO), warned_of_draws(torch.compile(r2s, backend="eager")):
        pass
    for model in (
        list(r2s.members),
        r2s.members,
        [PixelModel(m) for m in r2s.members],
        lambda v: r2s.expected(v).log(),
        r2s.expected,
        r2s.members[0].forward,
    ):
        fgsm(model, x, y, BUDGET)  # where a warning is an error
        clean_accuracy(model, [(x, y)])
    with pytest.warns(UserWarning, match="equally likely, which these are not"):
        fgsm(R2S(tickets, probabilities=[0.5, 0.25, 0.25]), x, y, ThreatModel(eps=0))


# Compiled, traced, exported, pickled


@pytest.mark.parametrize(("wrap", "per"), [(PixelModel, "sample"), (lambda r2s: r2s, "batch")])
def test_a_compiled_r2s_draws_as_it_does_uncompiled(tickets, wrap, per):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    plain, other = (wrap(R2S(tickets[:2], generator=seeded(1), per=per)) for _ in range(2))
    compiled = torch.compile(other, backend=backend)
    compared = []
    with torch.no_grad():
        for count in (8, 8, 1, 8):
            expected, found = plain(pixels(count)), compiled(pixels(count))
            compared.append(torch.allclose(found, expected, atol=1e-5))
    assert compared == [True] * 4
    assert not torch.equal(plain(pixels(8)), plain(pixels(8)))  # they do draw
    assert any("conv" in str(node.target) for graph in graphs for node in graph.graph.nodes)  # members are compiled


@pytest.mark.parametrize("materialised", [False, True])
def test_many_members_do_not_reach_the_limit_of_recompilations(materialised):
    torch._dynamo.reset()
    count = torch._dynamo.config.cache_size_limit + 2  # of old: from here on a member was not compiled at all
    tickets = [Ticket.draw(make_popup(remaining_ratio=(j + 1) / 20)) for j in range(count)]
    plain, other = (R2S(tickets, generator=seeded(1), per="batch", materialised=materialised) for _ in range(2))
    graphs, ran = [], []

    def backend(graph, _):
        graphs.append(graph)
        return lambda *inputs: (ran.append(1), graph.forward(*inputs))[1]

    compiled = torch.compile(other, backend=backend)
    with torch.no_grad():
        drawn = {int(plain.draw(1)) for _ in range(40)}
        plain.generator.manual_seed(1)
        assert len(drawn) > torch._dynamo.config.cache_size_limit  # as many as it takes
        compared = [torch.allclose(compiled(pixels(4)), plain(pixels(4)), atol=1e-5) for _ in range(40)]
    assert compared == [True] * 40
    assert len(graphs) == 1  # one for all members, whose weights are its inputs
    assert len(ran) == 40


def test_a_compiled_draw_of_the_operating_systems_is_left_alone(tickets):
    torch._dynamo.reset()
    r2s = R2S(tickets)
    drawn = torch.compile(r2s.draw, backend="eager")(1000)
    assert drawn.bincount().tolist() == pytest.approx([333] * 3, abs=100)
    assert not torch.equal(torch.compile(r2s.draw, backend="eager")(1000), drawn)


def test_one_graph_of_an_r2s_is_refused_with_the_reason(tickets):
    for model in (R2S(tickets), PixelModel(R2S(tickets))):
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported) as raised:
            torch.compile(model, backend="eager", fullgraph=True)(pixels(4))
        assert "draws members at random" in str(raised.value) or torch.__version__ < "2.7"


@pytest.mark.filterwarnings("ignore")  # torch.jit says that it is deprecated
@pytest.mark.parametrize("materialised", [False, True])
def test_a_draw_is_not_traced_or_exported_into_a_constant(tickets, materialised):
    r2s, x = R2S(tickets, materialised=materialised), pixels(4)
    for model in (r2s, PixelModel(r2s)):
        with pytest.raises(SettingsError, match="members one by one, made with materialised=True"):
            torch.jit.trace(model, x)
        if hasattr(torch.compiler, "is_exporting"):
            with pytest.raises(SettingsError, match="cannot be traced or exported"):
                torch.export.export(model, (x,), strict=False)


@pytest.mark.filterwarnings("ignore")
def test_the_members_are_traced_as_the_refusal_says(tickets):
    x = pixels(4)
    with pytest.raises(SettingsError, match=r"ticket.model\(\), or materialised=True"):
        torch.jit.trace(R2S(tickets).members[0], x)
    member = R2S(tickets, materialised=True).members[0].requires_grad_(False)
    assert torch.allclose(torch.jit.trace(member, x)(x), member(x), atol=1e-5)
    pooled = TicketPool().model(tickets[0])
    assert torch.allclose(torch.export.export(pooled, (x,), strict=False).module()(x), member(x), atol=1e-5)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [lambda model: pickle.loads(pickle.dumps(model)), saved, copy.deepcopy])
def test_what_is_pickled_computes_the_same_and_shares_the_same(tickets, again):
    x = pixels(4)
    r2s = R2S(tickets, generator=seeded(2))
    other = again(r2s)
    with torch.inference_mode():
        assert torch.equal(other.all_logits(x), r2s.all_logits(x))
        assert torch.equal(other(x), r2s(x))  # the generator goes on where it was
        alone = again(PixelModel(r2s.members[0]))
        assert torch.equal(alone(x), PixelModel(r2s.members[0])(x))
        assert alone.half()(x).dtype == torch.float16
    assert not alone.training
    shared = [
        {id(module._shared[0]) for module in model.modules() if hasattr(module, "_shared")} for model in (r2s, other)
    ]
    assert len(shared[0]) == len(shared[1]) > 10
    assert not shared[0] & shared[1]
    assert type(other.members[0]) is type(r2s.members[0])


def test_a_pickled_vit_and_its_tokens_compute_the_same():
    ticket = Ticket.draw(make_popup("test_vit", img_size=32))  # layers with a weight and a bias of the seed
    model = TicketPool().model(ticket)
    with torch.inference_mode():
        assert torch.equal(pickle.loads(pickle.dumps(model))(pixels()), model(pixels()))
