import pytest

from rst_hub import ThreatModel
from rst_hub.attacks.names import NAMES, named_attack
from rst_hub.errors import SettingsError
from rst_hub.spelling import over_255, spelled, spelled_attack, spelled_budget

SPELLINGS = {
    "PGD-20": "pgd20",
    "pgd_20": "pgd20",
    " Pgd 20 ": "pgd20",
    "PGD-100x5": "pgd100x5",
    "pgd-100-X5": "pgd100x5",
    "fgsm-rs": "fgsm_rs",
    "FGSM_RS": "fgsm_rs",
    "FGSM": "fgsm",
    "Margin-Sum-20": "margin_sum20",
    "marginsum5x2": "margin_sum5x2",
    "logit-ensemble-20": "logit_ensemble20",
    "CW-L2": "cw_l2",
    "cwlinf": "cw_linf",
    "CW-Linf-20x3": "cw_linf20x3",
    "cw_linfx3": "cw_linfx3",
    "ARC-100": "arc100",
    "Square-1000": "square1000",
    "AutoAttack": "autoattack",
    "auto-attack-rand": "autoattack_rand",
}


def test_attacks_are_found_however_they_are_spelled():
    for word, name in SPELLINGS.items():
        assert spelled_attack(word, NAMES) == name, word
    assert len(SPELLINGS) == 19
    for name in NAMES:
        assert spelled_attack(name, NAMES) == name  # what results hold stays as it is
        assert spelled_attack(name.upper().replace("_", "-"), NAMES) == name
    assert len(NAMES) == 14
    for word in ("pdg20", "pgd20x", "fgsm_rsx", "cw", "", "my_attack:Fast_Attack", "my.py:f"):
        assert spelled_attack(word, NAMES) == word
    for word, name in (("PGD-20", "pgd20"), ("FGSM_RS", "fgsm_rs"), ("Cw-Linf", "cw_linf")):
        assert (
            named_attack(word, ThreatModel("linf"), 8).described() == named_attack(name, ThreatModel(), 8).described()
        )
    with pytest.raises(SettingsError, match=r"attack 'PDG-20' is not known\. Did you mean pgd20"):
        named_attack("PDG-20", ThreatModel(), 8)


def test_norms_are_found_however_they_are_spelled():
    for word in ("linf", "Linf", "LINF", "L_inf", "l-inf"):
        assert ThreatModel(word) == ThreatModel("Linf")
        assert ThreatModel(word).norm == "Linf"
    for word in ("l2", "L2", "L_2"):
        assert ThreatModel(word, 0.5).norm == "L2"
    assert spelled("L7", ("Linf", "L2")) == "L7"
    for wrong in ("L7", "", None, 2):
        with pytest.raises(SettingsError, match="give 'Linf' or 'L2'"):
            ThreatModel(wrong)


def test_a_budget_over_255_is_taken_as_a_number_or_a_fraction():
    for word, value in {"8": 8, "8/255": 8, " 8 / 255 ": 8, "8.5": 8.5, "0.5/255": 0.5, "0": 0, "1": 1}.items():
        assert over_255(word) == value, word
    for word in ("0.03137", "0.031372549", repr(8 / 255)):  # can be nothing else
        assert over_255(word) == 8
    refused = {
        "0.0314": "give 8, or 8/255",
        "0.031": "give 8, or 8/255",
        "0.0157": "give 4, or 4/255",
        "0.3": "give 76.5, or 76.5/255 (and 0.3/255 where that is meant)",
        "0.5": "give 127.5, or 127.5/255",
        "0.2": "give 51, or 51/255",  # may be meant as it stands
        "0.002": "give 0.51, or 0.51/255",
        "8/256": "give pixels over 255, as in 8 or 8/255",
    }
    for word, said in refused.items():
        with pytest.raises(ValueError, match="give") as caught:
            over_255(word)
        assert said in str(caught.value), word
    assert len(refused) == 8
    for word in ("8", "8.0", "8.5", "x", "", "0.0314", "-1", "nan"):
        assert spelled_budget(word) == word
    for word, read in {"8/255": "8", "8.5/255": "8.5", "0.5/255": "0.5/255", "0.03137": "8"}.items():
        assert spelled_budget(word) == read
        assert over_255(read) == over_255(word)


def test_a_threat_model_of_255ths_is_told_the_fraction():
    for eps, said in ((8, "as in 8/255"), (8.5, "as in 8.5/255"), (300, "as in 8/255"), (-1, "as in 8/255")):
        with pytest.raises(SettingsError, match="give a budget from 0 to 1") as caught:
            ThreatModel(eps=eps)
        assert said in str(caught.value)
