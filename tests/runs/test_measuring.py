"""The recipes that measure: benchmark.py and transfer.py."""

import builtins
import functools
import importlib
import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import LABELS, ROOT, launch, run_recipe
from hub_server import add_commit
from PIL import Image
from torch.nn import functional

import rst_hub
from rst_hub.attacks.names import ADAPTIVE, named_attack
from rst_hub.data.images import load_images
from rst_hub.data.loader import evaluation_batches
from rst_hub.data.order import permutation
from rst_hub.errors import RstHubError
from rst_hub.evaluation.accuracy import evaluate, join, outcomes, percent, robust_accuracy
from rst_hub.evaluation.transfer import transfer_matrix, transfer_outcomes
from rst_hub.networks.build import build_model
from rst_hub.networks.dense import save_dense
from rst_hub.networks.inputs import describe_input
from rst_hub.runs import targets as victims
from rst_hub.runs.settings import BenchmarkSettings

benchmark = importlib.import_module("rst_hub.runs.benchmark")
transfer = importlib.import_module("rst_hub.runs.transfer")

EPS2 = rst_hub.ThreatModel("Linf", 2 / 255)


def searched(remaining_ratio, score_seed):
    """Return a ticket that some steps of search on the digits have made better than chance."""
    images, init = load_images("digits", "train"), rst_hub.Init(0)
    model = rst_hub.create_model("test_resnet", init, num_classes=10)
    describe_input(model, 32, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3), LABELS)
    popup = rst_hub.EdgePopup(model, init, remaining_ratio, score_seed=score_seed)
    optimizer = torch.optim.SGD(popup.scores.values(), 0.1, momentum=0.9)
    model.train()
    for step in range(25):
        chosen = torch.arange(64 * step, 64 * step + 64) % len(images)
        x = (images.rows[chosen].float() / 255 - 0.3) / 0.3
        popup.apply()
        functional.cross_entropy(model(x), images.labels[chosen]).backward()
        popup.collect_gradients()
        optimizer.step()
        optimizer.zero_grad()
    popup.apply()
    return rst_hub.Ticket.draw(popup, provenance={"settings": {"dataset": "digits"}})


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    """Return a folder of one ticket, and a folder of two."""
    root = tmp_path_factory.mktemp("tickets")
    for name, ratios in {"one": (0.3,), "two": (0.3, 0.5)}.items():
        for seed, ratio in enumerate(ratios):
            searched(ratio, seed).save(root / name)
    return root


def digits(samples, batch_size=50):
    test = load_images("digits", "test")
    test = test.subset(permutation("test", 0, 0, len(test))[:samples])
    return list(evaluation_batches(test, batch_size, image_size=32))


def results(folder, name="results.json"):
    return json.loads((folder / name).read_text())


SMALL = ("--samples", "120", "--batch-size", "50", "--eps", "2", "--attacks", "fgsm,pgd5", "--flag-samples", "0")


def test_a_benchmark_writes_what_the_library_measures(tickets, tmp_path, capsys):
    arguments = [
        "--ticket",
        str(tickets / "one"),
        *SMALL[:-4],
        "--attacks",
        "fgsm,pgd5,cw_l2,bandits20",
        "--flag-samples",
    ]
    benchmark.main([*arguments, "20", "--output", str(tmp_path / "run")])
    found, shown = results(tmp_path / "run"), capsys.readouterr().out
    model = rst_hub.PixelModel(rst_hub.from_pretrained(tickets / "one")).to(memory_format=torch.channels_last)
    batches = digits(120)
    clean = outcomes(model, [(x, y) for _, x, y in batches])
    assert found["clean"]["accuracy"] == percent(clean)
    assert 40 < percent(clean) < 100
    assert found["clean"]["samples"] == 120
    assert [row["key"] for row in found["attacks"]] == ["fgsm-eps2", "pgd5-eps2", "cw_l2", "bandits20-eps2"]
    measured = {name: join(evaluate(model, batches, named_attack(name, EPS2, 32))) for name in ("fgsm", "pgd5")}
    for row in found["attacks"][:2]:
        left = measured[row["attack"]["name"]]
        assert row["accuracy"] == pytest.approx(percent(left.correct), abs=100 / 120)
        assert len(row["outcomes"]) == 120
        assert row["interval_95"][0] < row["accuracy"] < row["interval_95"][1]
        attack = named_attack(row["attack"]["name"], EPS2, 32).keeping("enough")  # whose outcomes are those of "best"
        assert row["attack"] == attack.described()
        assert row["seconds"] == pytest.approx(120 / row["images_per_second"], abs=0.06)
        assert f"{row['accuracy']:6.2f} %  {row['key']}" in shown
        rounded_twice = {f"{row['images_per_second'] + half:.1f}" for half in (-0.005, 0, 0.005)}
        assert any(f", {rate} img/s" in shown for rate in rounded_twice)
    fgsm, pgd5, cw_l2, bandits = found["attacks"]
    assert fgsm["largest_linf_over_255"] == pytest.approx(2, abs=1e-3)
    assert cw_l2["median_l2_of_broken"] > 0
    assert "median_l2_of_broken" not in pgd5
    assert 0 < bandits["mean_queries"] <= 20
    together = "".join(
        min(pair)
        for pair in zip(
            found["clean"]["outcomes"], fgsm["outcomes"], pgd5["outcomes"], bandits["outcomes"], strict=True
        )
    )
    (worst,) = found["worst_case"]
    assert worst["outcomes"] == together  # cw_l2 has no budget, so it has no part in it
    assert worst["accuracy"] == pytest.approx(100 * together.count("1") / 120)
    assert worst["attacks"] == ["fgsm-eps2", "pgd5-eps2", "bandits20-eps2"]
    assert len(found["flags"]["checks"]) == 8
    assert found["flags"]["samples"] == 20
    assert found["network"]["tickets"][0]["remaining_ratio"] == 0.3
    assert found["network"]["source"] == "one"
    assert found["dataset"].items() >= {"name": "digits", "split": "test", "samples": 120}.items()
    assert found["seed"] == 0
    assert found["command"].startswith("rst-hub benchmark --samples 120 --batch-size 50 --ticket")
    assert found["images"]["size"] == 32
    assert found["versions"]["torch"] == torch.__version__


def test_attacks_and_budgets_are_added_to_a_benchmark(tickets, tmp_path):
    run = tmp_path / "run"
    arguments = ["--ticket", str(tickets / "one"), "--output", str(run), *SMALL]
    benchmark.main(arguments)
    before = results(run)
    journals = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    assert len(journals) == 3
    with pytest.raises(RstHubError, match="already holds a run: add --resume"):
        benchmark.main(arguments)
    with pytest.raises(RstHubError, match="samples was 120, is 60"):
        benchmark.main([*arguments, "--resume", "--samples", "60"])
    benchmark.main([*arguments, "--resume", "--eps", "4", "--attacks", "square5"])
    after = results(run)
    assert {path: path.read_bytes() for path in journals} == journals  # nothing was measured twice
    assert [row["key"] for row in after["attacks"]] == [
        f"{n}-eps{e}" for n in ("fgsm", "pgd5", "square5") for e in (2, 4)
    ]
    assert after["attacks"][0] == before["attacks"][0]
    assert "--attacks fgsm,pgd5,square5 --eps 2,4" in after["command"]
    assert [row["eps_over_255"] for row in after["worst_case"]] == [2, 4]
    assert after["worst_case"][1]["accuracy"] <= after["worst_case"][0]["accuracy"]


def test_a_ticket_that_names_no_data_set_is_asked_for_one(tmp_path, folder):
    with pytest.raises(RstHubError, match="give one by --dataset"):
        benchmark.main(["--ticket", str(folder), "--output", str(tmp_path / "run")])
    for provenance in ({}, {"settings": []}, {"settings": {"dataset": 3}}):
        assert victims._searched_on(provenance) is None


@pytest.mark.slow
def test_two_processes_measure_the_same(tickets, tmp_path):
    arguments = ("--ticket", tickets / "one", *SMALL[:-1], "60")
    benchmark.main([*map(str, arguments), "--output", str(tmp_path / "one")])
    run_recipe("benchmark.py", *arguments, "--output", tmp_path / "two", launcher=launch(2))
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    for name, batches in {"pgd5*": {"0.jsonl": 2, "1.jsonl": 1}, "flag*pgd40*": {"0.jsonl": 1, "1.jsonl": 1}}.items():
        journals = (tmp_path / "two").rglob(f"{name}/*.jsonl")
        assert {path.name: len(path.read_text().splitlines()) for path in journals} == batches
    assert len(one["flags"]["checks"]) == 8
    for key in ("clean", "worst_case", "flags"):
        assert one[key] == two[key]
    assert [row["outcomes"] for row in one["attacks"]] == [row["outcomes"] for row in two["attacks"]]


TWO = ("r0.3", "r0.5")
R2S = ("--samples", "30", "--batch-size", "30", "--eps", "6", "--attacks", "fgsm,margin20", "--flag-samples", "0")
EPS6 = rst_hub.ThreatModel("Linf", 6 / 255)


def members_of(tickets):
    models = [rst_hub.PixelModel(rst_hub.from_pretrained(tickets / "two", ticket=name)) for name in TWO]
    return [model.to(memory_format=torch.channels_last) for model in models]


def mean_probability(members):
    return lambda x: torch.stack([member(x).softmax(1) for member in members]).mean(0)


def logits_of_mean(members):
    return lambda x: mean_probability(members)(x).log()


def right(row, name):
    return torch.tensor([float(digit) for digit in row["outcomes"][name]], dtype=torch.float64)


@pytest.fixture(scope="module")
def switched(tickets, tmp_path_factory):
    """Return the run of a benchmark of two tickets as an R2S."""
    run = tmp_path_factory.mktemp("switched") / "r2s"
    benchmark.main(["--ticket", str(tickets / "two"), "--output", str(run), *R2S])
    return run


def test_a_folder_of_several_tickets_is_measured_as_an_r2s(tickets, switched):
    found, members = results(switched), members_of(tickets)
    assert found["kind"] == "r2s"
    assert [one["name"] for one in found["network"]["tickets"]] == list(TWO)
    on_all = [row["key"] for row in found["attacks"] if row["crafted_on"] == "all members"]
    assert on_all == [f"{name}-eps6" for name in (*ADAPTIVE, "fgsm", "margin20")]
    others = [(row["key"], row["crafted_on"]) for row in found["attacks"][len(on_all) :]]
    assert others == [
        ("pgd20-on-ensemble-eps6", "their ensemble"),
        *((f"pgd20-eps6{how}-on-{name}", name) for name in TWO for how in ("", "-stopped")),
        *((f"margin20-eps6-on-{name}", name) for name in TWO),
    ]
    assert found["clean"]["accuracy"] == percent(outcomes(members, [(x, y) for _, x, y in digits(30, 30)]))
    judges, checked = [*members, mean_probability(members)], 0
    models = {"all members": members, "their ensemble": logits_of_mean(members), **dict(zip(TWO, members, strict=True))}
    for row in found["attacks"]:
        attack = named_attack(row["attack"]["name"], EPS6, 32)
        if "-stopped-" in row["key"]:
            attack = attack.keeping("first")
        assert row["attack"] == attack.described()
        left = join(evaluate(models[row["crafted_on"]], digits(30, 30), attack, judges=judges))
        each = torch.stack([right(row, name) for name in (*TWO, "their ensemble")])
        assert int((each != left.each).sum()) <= 2  # of 90: convolutions may differ in their last digits
        assert row["accuracy"] == percent(each[:2].mean(0))  # exact: nobody is drawn
        assert row["tickets"] == {name: percent(right(row, name)) for name in TWO}
        assert row["ensemble"] == percent(each[2])
        assert row["all_members"] == percent(each[:2].min(0).values)
        assert row["samples"] == each.shape[1] == 30
        assert row["largest_linf_over_255"] <= 6.001
        checked += 1
    assert checked == 14
    assert found["attacks"][0]["accuracy"] < found["clean"]["accuracy"]
    assert any(row["all_members"] < min(row["tickets"].values()) for row in found["attacks"])


def test_the_papers_protocol_is_the_mean_of_the_transfer_matrix(tickets, switched):
    found, models = results(switched), members_of(tickets)
    data = [(x, y) for _, x, y in digits(30, 30)]
    attack = functools.partial(rst_hub.pgd, threat_model=EPS6, steps=20)
    assert [(one["key"], one["protocol"]) for one in found["protocols"]] == [
        ("pgd20-eps6-drawn", "full"),
        ("pgd20-eps6-stopped-drawn", "paper"),
        ("margin20-eps6-drawn", "full"),
    ]
    means = []
    for one in found["protocols"][:2]:
        matrix = transfer_matrix(models, data, attack, paper_protocol=one["protocol"] == "paper")
        assert one["tickets"] == list(TWO)
        for ours, theirs in zip(one["matrix"], matrix, strict=True):
            assert ours == pytest.approx(theirs, abs=100 / 30)
        means.append(sum(map(sum, one["matrix"])) / 4)
        assert one["accuracy"] == pytest.approx(means[-1])
        assert one["interval_95"][0] < one["accuracy"] < one["interval_95"][1]
        for i, model in enumerate(models):  # crafted on itself, it is that ticket's own robust accuracy
            assert one["matrix"][i][i] == pytest.approx(robust_accuracy(model, data, attack), abs=100 / 30)
    full, early, margins = (one["matrix"] for one in found["protocols"])
    assert [full[i][i] for i in range(2)] == [
        early[i][i] for i in range(2)
    ]  # an early stop changes what transfers only
    assert full != early
    by_key = {row["key"]: row["tickets"] for row in found["attacks"]}
    assert margins == [[by_key[f"margin20-eps6-on-{name}"][other] for other in TWO] for name in TWO]
    assert means[0] != means[1]


def test_the_worst_case_of_an_r2s_is_each_samples_lowest_expectation(switched):
    found = results(switched)
    (worst,) = found["worst_case"]
    rows = [row for row in found["attacks"] if "-stopped-" not in row["key"]]
    assert worst["attacks"] == [row["key"] for row in rows]
    assert len(rows) == 12
    assert "pgd20-on-ensemble-eps6" in worst["attacks"]
    expected, every, alone = [], [], {name: [] for name in (*TWO, "their ensemble")}
    for sample in range(30):
        answers = [[int(row["outcomes"][name][sample]) for name in TWO] for row in (found["clean"], *rows)]
        expected.append(min(sum(one) / 2 for one in answers))
        every.append(min(min(one) for one in answers))
        for name, lowest in alone.items():
            lowest.append(min(int(row["outcomes"][name][sample]) for row in (found["clean"], *rows)))
    assert worst["outcomes"] == expected or [float(digit) for digit in worst["outcomes"]] == expected
    assert worst["accuracy"] == pytest.approx(100 * sum(expected) / 30)
    assert worst["all_members"]["accuracy"] == pytest.approx(100 * sum(every) / 30)
    accuracies = {name: 100 * sum(lowest) / 30 for name, lowest in alone.items()}
    assert worst["ensemble"]["accuracy"] == pytest.approx(accuracies.pop("their ensemble"))
    assert worst["tickets"] == pytest.approx(accuracies)
    best = max(accuracies, key=accuracies.get)
    assert worst["best_ticket"]["name"] == best
    assert worst["best_ticket"]["accuracy"] == pytest.approx(accuracies[best])
    assert worst["accuracy"] < min(row["accuracy"] for row in rows) + 1e-9
    assert worst["all_members"]["accuracy"] <= worst["accuracy"]


def test_attacks_and_budgets_are_added_to_an_r2s(tickets, switched, tmp_path, capsys):
    run = shutil.copytree(switched, tmp_path / "run")
    before = results(run)
    journals = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    assert len(journals) == 15
    arguments = ["--ticket", str(tickets / "two"), "--output", str(run), *R2S[:4], "--flag-samples", "0"]
    benchmark.main([*arguments, "--resume", "--eps", "6", "--attacks", "cw_l2,pgd2"])
    after, shown = results(run), capsys.readouterr().out
    assert {path: path.read_bytes() for path in journals} == journals  # nothing was measured twice
    assert len(list(run.rglob("*.jsonl"))) == 17
    kept = [row for row in after["attacks"] if row["key"] not in ("cw_l2", "pgd2-eps6")]
    assert kept == before["attacks"]
    cw_l2 = next(row for row in after["attacks"] if row["key"] == "cw_l2")
    assert cw_l2["crafted_on"] == "all members"
    assert after["protocols"] == before["protocols"]
    assert len(after["worst_case"][0]["attacks"]) == 13  # cw_l2 has no budget
    assert after["worst_case"][0]["accuracy"] <= before["worst_case"][0]["accuracy"]
    for line in ("pgd20-eps6 on all members", "pgd20-eps6-stopped-on-r0.5", "all members right", "the ensemble"):
        assert line in shown, line


def test_an_r2s_is_measured_in_l2_too(tickets, tmp_path):
    few = ("--samples", "10", "--attacks", "fgsm", "--flag-samples", "0", "--norm", "L2", "--eps", "300")
    benchmark.main(["--ticket", str(tickets / "two"), "--output", str(tmp_path / "run"), *few])
    found = results(tmp_path / "run")
    assert {row["attack"]["norm"] for row in found["attacks"]} == {"L2"}
    assert len(found["attacks"]) == 11
    for row in found["attacks"]:
        assert 0 < row["largest_l2"] <= row["attack"]["eps_over_255"] / 255 + 1e-4
    assert [(one["norm"], one["eps_over_255"]) for one in found["worst_case"]] == [("L2", 300.0)]
    assert len(found["protocols"]) == 2


@pytest.mark.slow
def test_autoattack_on_an_r2s_is_made_on_each_member_and_on_their_ensemble(tickets, tmp_path):
    pytest.importorskip("pyautoattack")
    few = ("--samples", "6", "--attacks", "autoattack", "--flag-samples", "0", "--eps", "6")
    benchmark.main(["--ticket", str(tickets / "two"), "--output", str(tmp_path / "run"), *few])
    found, members = results(tmp_path / "run"), members_of(tickets)
    rows = [row for row in found["attacks"] if row["attack"]["name"] == "autoattack"]
    assert [row["crafted_on"] for row in rows] == ["their ensemble", *TWO]
    attack = named_attack("autoattack", EPS6, 32)
    for row, model in zip(rows[:2], (members, members[0]), strict=True):
        left = join(evaluate(model, digits(6), attack, judges=[*members, mean_probability(members)]))
        each = torch.stack([right(row, name) for name in (*TWO, "their ensemble")])
        assert int((each != left.each).sum()) <= 1
    drawn = found["protocols"][-1]
    assert drawn["key"] == "autoattack-eps6-drawn"
    assert drawn["matrix"] == [[row["tickets"][name] for name in TWO] for row in rows[1:]]
    assert {row["key"] for row in rows} <= set(found["worst_case"][0]["attacks"])


def test_one_of_several_tickets_is_measured_alone(tickets, tmp_path):
    benchmark.main(["--ticket", str(tickets / "two"), "--name", "r0.5", "--output", str(tmp_path / "one"), *SMALL])
    single = results(tmp_path / "one")
    assert single["kind"] == "ticket"
    assert single["clean"]["accuracy"] == percent(outcomes(members_of(tickets)[1], [(x, y) for _, x, y in digits(120)]))
    assert [row["key"] for row in single["attacks"]] == ["fgsm-eps2", "pgd5-eps2"]


@pytest.mark.slow
def test_some_of_a_folders_tickets_are_measured_as_an_r2s(tickets, tmp_path):
    three = shutil.copytree(tickets / "two", tmp_path / "three")
    searched(0.4, 2).save(three)
    output = tmp_path / "run"
    few = ("--samples", "4", "--attacks", "pgd20", "--eps", "6,8.5", "--flag-samples", "0")
    benchmark.main(["--ticket", str(three), "--name", "r0.3, r0.5", "--output", str(output), *few])
    found = results(output)
    assert found["kind"] == "r2s"
    assert [one["name"] for one in found["network"]["tickets"]] == list(TWO)
    ensembles = [row["key"] for row in found["attacks"] if row["crafted_on"] == "their ensemble"]
    assert ensembles == ["pgd20-on-ensemble-eps6", "pgd20-on-ensemble-eps8.5"]
    chosen, whole = victims.load_victim(str(three), "r0.3,r0.5"), victims.load_victim(str(three))
    assert chosen.label == "three-r0.3-r0.5"
    assert (whole.label, len(whole.members)) == ("three", 3)
    assert victims.load_victim(str(three), "r0.4").kind == "ticket"
    for names, message in {
        "r0.3,r0.7": "holds no ticket 'r0.7'",
        "r0.3,": "holds no ticket ''",
        "r0.3,r0.5,r0.3": "'r0.3' is there twice",
    }.items():
        with pytest.raises(RstHubError, match=message):
            victims.load_victim(str(three), names)


def test_a_ticket_named_ensemble_is_not_taken_for_the_ensemble(tickets):
    victim = victims.load_victim(str(tickets / "two"))
    entries = [{**entry, "name": name} for entry, name in zip(victim.about["tickets"], ("ensemble", "b"), strict=True)]
    named = replace(victim, about={**victim.about, "tickets": entries})
    planned = benchmark.planned(BenchmarkSettings(attacks="pgd20"), [8.0], named)
    assert planned["pgd20-on-ensemble-eps8"].on == "their ensemble"
    assert planned["pgd20-eps8-on-ensemble"].on == "ensemble"
    assert len(planned) == len(ADAPTIVE) + 1 + 2 * 2


def test_dense_models_and_repositories_are_measured_too(tickets, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "ADAPTIVE", ("pgd20",))  # what an R2S is measured with has its own tests
    model = build_model("test_resnet", {"num_classes": 10}, seed=0)
    describe_input(model, 32, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3), LABELS)
    trained = {"command": "recipes/train.py", "settings": {"dataset": "digits"}}
    save_dense(model, tmp_path / "dense", "test_resnet", {"num_classes": 10}, trained)
    add_commit("org/dense-digits", tmp_path / "dense")
    add_commit("org/rst-two", tickets / "two")
    sources = {
        str(tmp_path / "dense"): "dense",
        "hf-hub:org/dense-digits": "dense",
        "org/rst-two": "r2s",
        "org/rst-two@main": "r2s",
        "hf-hub:org/rst-two": "r2s",
        f"local-dir:{tickets / 'two'}": "r2s",
    }
    accuracies = []
    origins = [ticket.provenance for ticket in rst_hub.hub.loading.load_tickets(tickets / "two")[1]]
    for number, (source, kind) in enumerate(sources.items()):
        output = tmp_path / str(number)
        dataset = ["--dataset", "digits"] if number else []  # the first says itself what it was trained on
        benchmark.main(["--ticket", source, *dataset, *SMALL, "--samples", "10", "--output", str(output)])
        assert results(output)["kind"] == kind
        expected = origins if kind == "r2s" else [trained if number == 0 else {}]  # timm's own way reads weights only
        assert results(output)["origins"] == expected
        accuracies.append(results(output)["attacks"][0]["accuracy"])
    assert len(accuracies) == 6
    assert accuracies[0] == accuracies[1]
    assert len(set(accuracies[2:])) == 1


def test_what_cannot_be_measured_is_one_error_and_nothing_is_written(tickets, tmp_path, monkeypatch, image_folder):
    one = ("--ticket", str(tickets / "one"))
    model = build_model("test_resnet", {"num_classes": 10}, seed=0)
    describe_input(model, 32, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3), [*LABELS[:9], "zero"])
    save_dense(model, tmp_path / "other", "test_resnet", {"num_classes": 10})
    three = build_model("test_resnet", {"num_classes": 3}, seed=0)
    describe_input(three, 32, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3), ["ant", "bee", "cat"])
    save_dense(three, tmp_path / "three", "test_resnet", {"num_classes": 3})
    cases = (
        ((), "--ticket ''"),
        (("--ticket", str(tmp_path / "absent")), "neither a ticket folder here"),
        (("--ticket", "org/absent"), "no such repository on the Hub"),
        (("--ticket", "resnet81"), "timm cannot load resnet81"),
        ((*one, "--attacks", "pgd20,pdg"), "attack 'pdg' is not known"),
        ((*one, "--attacks", "pgd20,"), "--attacks 'pgd20,'"),
        ((*one, "--eps", "8,x"), "--eps 8,x"),
        ((*one, "--eps", "300"), "at most 255"),
        ((*one, "--norm", "L7"), "invalid choice"),
        ((*one, "--samples", "0"), "--samples 0"),
        ((*one, "--name", "r0.7"), "holds no ticket 'r0.7'"),
        ((*one, "--dataset", str(image_folder)), "knows 10 classes, data set"),
        (("--ticket", str(tmp_path / "other")), "give one by --dataset"),
        (("--ticket", str(tmp_path / "other"), "--dataset", "digits"), "name their classes differently: 'zero', '9'"),
        (("--ticket", str(tmp_path / "other"), "--name", "r0.1"), "goes with tickets"),
        (
            ("--ticket", str(tmp_path / "three"), "--dataset", str(image_folder), "--attacks", "autoattack"),
            "needs 4 classes",
        ),
        ((*one, "--norm", "L2", "--attacks", "cw_linf"), "give margin100 instead"),
        ((*one, "--preset", "digits"), "'--preset' is not known"),
    )
    for arguments, message in cases:
        with pytest.raises(RstHubError) as caught:
            benchmark.main([*arguments, "--output", str(tmp_path / "run")])
        assert message in str(caught.value), arguments
        assert not (tmp_path / "run").exists()
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name in ("pyautoattack", "matplotlib"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RstHubError, match=r'pip install "rst-hub\[attacks\]"'):
        benchmark.main([*one, "--attacks", "pgd20,autoattack", "--output", str(tmp_path / "run")])
    with pytest.raises(RstHubError, match=r'pip install "rst-hub\[plots\]"'):
        transfer.main(["--tickets", str(tickets / "two"), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_autoattacks_own_warnings_are_kept(tmp_path):
    logger = logging.getLogger("auto-attack")
    with benchmark.autoattack_warnings(tmp_path / "0.warnings"):
        logger.warning("there are 3 points with zero gradient!")
        logger.debug("robust accuracy: 3%")
    assert (tmp_path / "0.warnings").read_text() == "there are 3 points with zero gradient!\n"
    assert logger.handlers == []
    assert logger.propagate


def test_transfer_writes_a_matrix_and_a_heat_map(tickets, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [
        "--tickets",
        f"{tickets / 'two'},{tickets / 'one'}",
        "--samples",
        "120",
        "--batch-size",
        "50",
        "--eps",
        "6",
    ]
    arguments += ["--attack", "pgd5", "--output", str(run)]
    transfer.main(arguments)
    found = results(run, "transfer.json")
    labels = [network["label"] for network in found["networks"]]
    assert labels == ["r0.3", "r0.5", "one-r0.3"]
    matrix = found["accuracy"]["full"]
    assert list(found["accuracy"]) == ["full"]
    assert matrix[0][0] == matrix[0][2] == matrix[2][0]  # the third is the first again
    assert matrix[0][0] < matrix[1][0]
    assert matrix[1][1] < matrix[0][1]
    models = [rst_hub.PixelModel(rst_hub.from_pretrained(tickets / "two", ticket=name)) for name in ("r0.3", "r0.5")]
    models = [model.to(memory_format=torch.channels_last) for model in models]
    attack = functools.partial(rst_hub.pgd, threat_model=rst_hub.ThreatModel("Linf", 6 / 255), steps=5)
    by_hand = {
        protocol: transfer_outcomes(models, digits(120), attack, paper_protocol=protocol == "paper")
        for protocol in ("full", "paper")
    }
    for i in range(2):
        assert matrix[i][:2] == pytest.approx([percent(row) for row in by_hand["full"][i]], abs=150 / 120)
    before = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    transfer.main([*arguments, "--resume", "--paper-protocol"])
    transfer.main([*arguments, "--resume"])  # what was measured stays in the result
    both = results(run, "transfer.json")["accuracy"]
    assert both["full"] == matrix
    assert {path: path.read_bytes() for path in before} == before
    for i in range(2):
        assert both["paper"][i][:2] == pytest.approx([percent(row) for row in by_hand["paper"][i]], abs=150 / 120)
    assert both["paper"] != both["full"]
    assert both["paper"][0][0] == pytest.approx(matrix[0][0], abs=150 / 120)
    with Image.open(run / "transfer.png") as picture:
        assert min(picture.size) > 200
        assert len(set(picture.convert("RGB").getdata())) > 100
    assert f"{matrix[0][1]:.1f}" in capsys.readouterr().out


@pytest.mark.slow
def test_transfer_in_two_processes_is_the_same(tickets, tmp_path):
    arguments = (
        "--tickets",
        tickets / "two",
        "--samples",
        "120",
        "--batch-size",
        "50",
        "--eps",
        "2",
        "--attack",
        "pgd2",
    )
    transfer.main([*map(str, arguments), "--output", str(tmp_path / "one")])
    run_recipe("transfer.py", *arguments, "--output", tmp_path / "two", launcher=launch(2))
    one, two = (results(tmp_path / name, "transfer.json")["accuracy"] for name in ("one", "two"))
    assert one == two


def test_transfer_refuses_what_makes_no_matrix(tickets, tmp_path):
    cases = (
        (("--tickets", str(tickets / "one")), "give two networks or more"),
        ((), "--tickets ''"),
        (("--tickets", str(tickets / "two"), "--paper-protocol", "--attack", "fgsm"), "stops an attack early"),
        (("--tickets", str(tickets / "two"), "--paper-protocol", "--attack", "pgd2x2"), "stops an attack early"),
        (("--tickets", str(tickets / "two"), "--eps", "-1"), "--eps -1.0"),
    )
    for arguments, message in cases:
        with pytest.raises(RstHubError) as caught:
            transfer.main([*arguments, "--output", str(tmp_path / "run")])
        assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_changed_ticket_or_data_set_is_measured_anew(tickets, tmp_path):
    one, two = (victims.load_victim(str(tickets / "two"), name) for name in ("r0.3", "r0.5"))
    images = load_images("digits", "test")
    same = victims.fingerprint([victims.load_victim(str(tickets / "two"), "r0.3")], images)
    changed = images.subset(torch.arange(len(images)))
    changed.rows[250, 0, 3, 3] += 1
    prints = [victims.fingerprint(which, on) for which in ([one], [two], [one, two]) for on in (images, changed)]
    model = build_model("test_resnet", {"num_classes": 10}, seed=0)
    for number, mean in enumerate((0.3, 0.9)):
        describe_input(model, 32, (mean,) * 3, (0.3, 0.3, 0.3), LABELS)
        save_dense(model, tmp_path / str(number) / "dense", "test_resnet", {"num_classes": 10})
        prints.append(victims.fingerprint([victims.load_victim(str(tmp_path / str(number) / "dense"))], images))
    assert prints[0] == same
    assert len(set(prints)) == 8


def test_the_readme_names_every_recipe():
    text = (ROOT / "README.md").read_text()
    names = [path.name for path in (ROOT / "recipes").glob("*.py")]
    assert len(names) == 5
    assert [name for name in names if name not in text and name.removesuffix(".py") not in text] == []
