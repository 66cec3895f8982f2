import inspect
import json

import pytest
import torch
from torch import nn

import rst_hub.attacks.autoattack as autoattack
from rst_hub import ThreatModel, bandits, cw_l2, cw_linf, fgsm, fgsm_rs, pgd, square
from rst_hub.attacks.arc import arc
from rst_hub.attacks.names import ADAPTIVE, NAMES, named_attack
from rst_hub.errors import SettingsError

EPS8 = ThreatModel("Linf", 8 / 255)


def test_names_stand_for_attacks_with_all_their_settings():
    pytest.importorskip("pyautoattack")
    expected = {
        "fgsm": (fgsm, {}),
        "fgsm_rs": (fgsm_rs, {"step_size_over_255": 10.0}),
        "pgd20": (
            pgd,
            {"steps": 20, "step_size_over_255": 2.0, "restarts": 1, "keep": "best", "loss": "cross_entropy"}
            | {"average": "loss", "random_start": True},
        ),
        "pgd100x5": (pgd, {"steps": 100, "restarts": 5}),
        "margin20": (pgd, {"steps": 20, "loss": "margin"}),
        "margin100x5": (pgd, {"steps": 100, "restarts": 5, "loss": "margin"}),
        "logit_ensemble20": (pgd, {"steps": 20, "restarts": 1, "loss": "cross_entropy", "average": "logits"}),
        "logit_ensemble100x5": (pgd, {"steps": 100, "restarts": 5, "average": "logits"}),
        "probability_ensemble20": (pgd, {"steps": 20, "loss": "cross_entropy", "average": "probabilities"}),
        "probability_ensemble50x2": (pgd, {"steps": 50, "restarts": 2, "average": "probabilities"}),
        "margin_sum20": (pgd, {"steps": 20, "step_size_over_255": 2.0, "loss": "clipped_margin", "average": "loss"}),
        "margin_sum100x5": (pgd, {"steps": 100, "restarts": 5, "loss": "clipped_margin", "average": "loss"}),
        "arc20": (arc, {"steps": 20, "step_size_over_255": 8.0, "targets": 9, "random_start": True}),
        "arc100": (arc, {"steps": 100, "step_size_over_255": 8.0}),
        "cw_linf": (cw_linf, {"steps": 100, "restarts": 1}),
        "cw_linf20x3": (cw_linf, {"steps": 20, "restarts": 3}),
        "cw_l2": (cw_l2, {"steps": 100, "search_steps": 1, "initial_const": 0.1, "learning_rate": 0.01}),
        "bandits": (bandits, {"max_queries": 10_000, "tile": 20, "image_lr": 0.01, "fd_eta": 0.1}),
        "bandits1000": (bandits, {"max_queries": 1000}),
        "square": (square, {"max_queries": 5000, "p_init": 0.8}),
        "square1000": (square, {"max_queries": 1000}),
        "autoattack": (autoattack, {"version": "standard"}),
        "autoattack_rand": (autoattack, {"version": "rand"}),
    }
    for name, (function, settings) in expected.items():
        attack = named_attack(name, EPS8, 32)
        described = json.loads(json.dumps(attack.described()))
        assert attack.function is function
        assert settings.items() <= described.items(), name
        assert {"name": name, "function": function.__name__}.items() <= described.items()
        assert (described["norm"], described["eps_over_255"]) == (("L2", None) if name == "cw_l2" else ("Linf", 8.0))
        assert attack.counts_queries == (function in (bandits, square))
        budget = () if name == "cw_l2" else (EPS8,)
        inspect.signature(function).bind(None, None, None, *budget, **attack.settings)
    assert set(NAMES) <= set(expected)
    assert named_attack("bandits", ThreatModel("L2", 1.0), 224).described()["tile"] == 50
    assert named_attack("bandits", ThreatModel("L2", 1.0), 224).described()["image_lr"] == 0.5


def test_every_attack_runs_by_its_name_and_draws_from_the_generator():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    x = torch.rand(6, 3, 8, 8)
    y = model(x).argmax(1)
    drawing = 0
    names = ("fgsm", "fgsm_rs", "pgd3", "cw_linf3", "cw_l2", "bandits10", "square10")
    for name in (*names, "logit_ensemble3", "probability_ensemble3", "margin_sum3", "arc3"):
        attack = named_attack(name, EPS8, 8)
        found = []
        for seed in (0, 0, 1):
            queries = torch.zeros_like(y)
            state = torch.get_rng_state()
            found.append(attack(model, x, y, torch.Generator().manual_seed(seed), queries))
            assert torch.equal(torch.get_rng_state(), state), name  # nothing is drawn from anywhere else
            assert bool((queries > 0).any()) == attack.counts_queries
        assert torch.equal(found[0], found[1])
        drawing += not torch.equal(found[0], found[2])
    assert drawing == 9


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_r2s_is_measured_by_five_different_attacks_in_either_norm(norm):
    assert set(ADAPTIVE) <= set(NAMES)
    torch.manual_seed(0)
    members = [nn.Sequential(nn.Flatten(), nn.Linear(192, 5)) for _ in range(2)]
    x = torch.rand(12, 3, 8, 8)
    y = members[0](x).argmax(1)
    attacks = [named_attack(name, ThreatModel(norm, 0.02), 8) for name in ADAPTIVE]
    found = [attack(members, x, y, torch.Generator().manual_seed(0)) for attack in attacks]
    of_arc = 5.1 if norm == "Linf" else 1.275
    assert [attack.described()["step_size_over_255"] for attack in attacks] == [1.275] * 4 + [of_arc]
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
    assert len({str({**attack.described(), "name": ""}) for attack in attacks}) == 5


def test_what_an_attack_keeps_can_be_changed_where_it_keeps_anything():
    pgd20, fgsm_ = named_attack("pgd20", EPS8, 32), named_attack("fgsm", EPS8, 32)
    assert pgd20.keeping("enough").described() == {**pgd20.described(), "keep": "enough"}
    assert pgd20.described()["keep"] == "best"
    assert fgsm_.keeping("enough") is fgsm_


def test_cw_linf_is_for_linf():
    with pytest.raises(SettingsError, match="give margin100 instead"):
        named_attack("cw_linf", ThreatModel("L2", 0.5), 32)
    assert named_attack("margin100", ThreatModel("L2", 0.5), 32).described()["norm"] == "L2"


def test_an_unknown_name_is_refused_with_the_nearest():
    for name, hint in (
        ("pgd", "Did you mean pgd20"),
        ("sqare", "Did you mean square"),
        ("pgd0", "pgd20"),
        ("arc", "Did you mean arc20"),
        ("arc20x2", "arc20"),
        ("logit_ensemble", "Did you mean logit_ensemble20"),
        ("margin_sum0", "margin_sum20"),
        ("xyz", "Known"),
    ):
        with pytest.raises(SettingsError, match=hint):
            named_attack(name, EPS8, 32)
