from dataclasses import asdict, replace

from ticket_results import like_the_papers, measured

from rst_hub.cards.paper import compared, paper
from rst_hub.runs.settings import PRESETS, SearchSettings


def test_the_papers_number_stands_beside_ours():
    rows = [
        measured(("r0.05",), "autoattack", 41.0, 8.0, "Linf"),
        measured(("r0.05",), "autoattack", 31.0, 10.0, "Linf"),  # no such budget there
        measured(("r0.05",), "pgd20", 44.0, 128.0, "L2"),
        measured(("r0.05",), "cw_l2", 51.0, None, "L2"),
        measured(("r0.05",), "pgd100", 40.0, 8.0, "Linf"),
    ]
    found = compared(like_the_papers("preact_resnet18", "uoft-cs/CIFAR-10", (0.05,), rows, note="JPEG"))
    assert [(row[2], row[3], row[4]) for row in found["rows"]] == [
        ("45.75", "46.39", "table 6"),
        ("61.11", "63.61", "table 2"),
        ("51.74", "52.78", "table 6"),
    ]
    assert found["rows"][0][:2] == ("r0.05, autoattack, Linf, eps 8/255", "41.00 (1.00 to 99.00)")
    differences = "\n".join(found["differences"])
    for text in (
        "epochs 20 here, 160 there",
        "1,000 test images here",
        "49,000 training images here, 50,000 there",
        "one seed here",
        "JPEG",
    ):
        assert text in differences, text
    assert "eps 128/255 here, 127.5/255 there (r0.05, pgd20, L2, eps 128/255)" in differences
    assert "batch" not in differences
    assert "learning rate" not in differences


def test_what_goes_beyond_the_paper_is_said_as_text():
    rows = [measured(("r0.05",), "autoattack", 41.0, 8.0, "Linf")]
    lifts = {"loss": "trades", "trades_beta": "{x}", "ema": "{", "climb": "{0.__class__}", "layer_ratios": "erk"}
    said = "\n".join(compared(like_the_papers("preact_resnet18", "cifar10", (0.05,), rows, **lifts))["differences"])
    for text in ("TRADES with beta {x}: here, not there", "decay { of", "{0.__class__} of the norm", "Erdos-Renyi"):
        assert text in said


def test_the_papers_r2s_and_imagenet_rows():
    six = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
    members = tuple(f"r{ratio}" for ratio in six)
    everyone = "all members, expectation over them"
    rows = [measured(members, "pgd20", 50.0, 8.0, "Linf", everyone), measured(members, "clean", 80.0)]
    found = compared(like_the_papers("wide_resnet34_10", "cifar100", six, rows))["rows"]
    assert [row[2] for row in found] == ["40.17", "54.72"]
    assert everyone in found[0][4]
    ensemble, one = "all members, their ensemble", "one member drawn at random"
    rows = [
        measured(members, "pgd20", 50.0, 8.0, "Linf", one),
        measured(members, "logit_ensemble20", 49.0, 8.0, "Linf", ensemble),
        measured(members, "probability_ensemble20", 48.0, 8.0, "Linf", ensemble),
        measured(members, "margin_sum20", 47.0, 8.0, "Linf", everyone),  # the paper has no such attack
        measured(members, "worst", 46.0, 8.0, "Linf", everyone),
        replace(measured(members, "pgd20", 45.0, 8.0, "Linf", everyone), beside="baseline"),
    ]
    found = compared(like_the_papers("wide_resnet34_10", "cifar100", six, rows))["rows"]
    assert [row[2] for row in found] == ["43.27", "38.25", "38.25"]
    assert [row[4] for row in found] == [f"table {n}, attacker: {who}" for n, who in ((3, one), *[(5, ensemble)] * 2)]
    rows = [measured(("r0.25",), "pgd20", 20.0, 4.0, "Linf"), measured(("r0.25",), "clean", 50.0)]
    folder = like_the_papers("resnet101", "ILSVRC/imagenet-1k", (0.25,), rows, eps=4.0)
    assert [row[2] for row in compared(folder)["rows"]] == ["26.68", "54.84"]
    for other in (
        ("resnet101", "imagenet-100", (0.25,)),
        ("resnet101", "imagenet", (0.2,)),
        ("resnet34", "imagenet", (0.25,)),
    ):
        nothing = compared(
            like_the_papers(*other, [measured((f"r{other[2][0]}",), "pgd20", 20.0, 4.0, "Linf")], eps=4.0)
        )
        assert nothing["rows"] == []


def test_paper_json_is_whole():
    rows = paper()["rows"]
    tables = {name: [row for row in rows if row["table"] == name] for name in {row["table"] for row in rows}}
    counts = {name: len(found) for name, found in tables.items()}
    assert counts == {"table 1": 12, "table 2": 36, "table 3": 16, "table 4": 8, "table 5": 8, "table 6": 98} | {
        "table 8": 24,
        "figure 7": 7,
        "section 4.7": 1,
    }
    assert round(sum(row["accuracy"] for row in rows), 2) == 10964.97
    for name, preset in (("cifar10", "cifar"), ("cifar100", "cifar"), ("imagenet", "imagenet")):
        ours, theirs = asdict(SearchSettings(**PRESETS[preset])), paper()["settings"][name]
        shared = set(ours) & set(theirs) - {"test_samples"}  # there the size of the test split
        assert {"attack", "epochs", "optimizer", "lr", "schedule", "batch_size"} <= shared
        assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
