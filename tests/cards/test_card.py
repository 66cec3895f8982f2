import json
import re
from dataclasses import replace

import pytest
import ticket_results
import yaml
from conftest import ROOT, make_popup
from huggingface_hub import ModelCard
from ticket_results import SAMPLES, SEARCHED, accuracies, network, put, result, section, text_of, transfer

from rst_hub import EdgePopup, RstHubError, Ticket, from_pretrained
from rst_hub.cards.about import read_about
from rst_hub.cards.card import is_rendered, render, write_card
from rst_hub.cards.pictures import picture_digest
from rst_hub.cards.wording import escaped, fenced
from rst_hub.errors import SettingsError, TicketError
from rst_hub.tickets.config import read_config
from rst_hub.tickets.ticket import ticket_names


def test_every_accuracy_stands_in_a_table_and_in_the_metadata(folder, tmp_path):
    linf = result("ticket", network(folder), ("pgd20", "autoattack", "cw_linf", "square100", "cw_l2"), (8,))
    l2 = result("ticket", network(folder), ("pgd20", "margin20x2"), (128,), "L2", clean=666)
    dense = result("dense", {"source": "natural <b>", "architecture": "ResNet"}, clean=900)
    files = [put(tmp_path / f"{i}.json", said) for i, said in enumerate((linf, l2, dense))]
    written = write_card(folder, files, {"license": "apache-2.0", "repo_id": "org/rst-x"})
    assert [path.name for path in written][-2:] == ["card.json", "README.md"]
    text = (folder / "README.md").read_text()
    data = ModelCard(text).data
    own = section(text, "Ticket r0.1")
    assert "accuracy on cifar10" in section(text, "Dense networks")
    assert "natural &lt;b&gt;" in text
    checked = 0
    for said, where in ((linf, own), (l2, own), (dense, section(text, "Dense networks"))):
        for accuracy in accuracies(said):
            assert f"| {accuracy:.2f} |" in where
            metric = [one for one in data.eval_results if one.metric_value == accuracy]
            assert len(metric) == (0 if said is dense else accuracies(said).count(accuracy)), accuracy
            checked += 1
    assert checked == 16
    assert len(data.eval_results) == 11
    for low, high in (row["interval_95"] for row in linf["attacks"]):
        assert f"{low:.2f} to {high:.2f}" in own
    pgd = next(
        one for one in data.eval_results if one.metric_name == "PGD-20, Linf, eps 8/255, ticket r0.1, 1,000 samples"
    )
    assert (pgd.metric_type, pgd.dataset_type, pgd.dataset_split) == ("robust_accuracy", "cifar10", "test")
    expected = {"ticket": "r0.1", "remaining_ratio": 0.1, "norm": "Linf", "eps_over_255": 8.0, "samples": SAMPLES}
    assert expected.items() <= pgd.metric_args.items()
    assert pgd.metric_args["attack"]["steps"] == 20
    assert pgd.metric_args["interval_95"] == linf["attacks"][0]["interval_95"]
    assert "too few to say" in section(text, "Honesty flags")
    assert "recipes/benchmark.py --ticket it" in own
    assert "all of the split" in own


def test_metadata_is_the_same_after_a_round_trip(folder, tmp_path):
    said = result("ticket", network(folder))
    about = {
        "license": "mit",
        "dataset": {"id": "uoft-cs/cifar10", "note": "JPEG: \"q\" 'r' # no"},
        "base_model": "a/b",
    }
    write_card(folder, [put(tmp_path / "a.json", said)], about)
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    card = ModelCard(text)
    assert card.data.to_dict() == front
    assert ModelCard(str(card)).data.to_dict() == front
    assert front["library_name"] == "rst-hub"
    assert front["datasets"] == ["uoft-cs/cifar10"]
    assert front["license"] == "mit"
    assert front["base_model"] == "a/b"
    assert front["pipeline_tag"] == "image-classification"
    size = (folder / "ticket-r0.1.safetensors").stat().st_size
    assert front["rst"]["tickets"] == [{"name": "r0.1", "remaining_ratio": 0.1, "bytes": size}]
    found = front["model-index"][0]["results"][0]["dataset"]
    assert found == {"name": "cifar10 (JPEG: \"q\" 'r' # no)", "type": "uoft-cs/cifar10", "split": "test"}
    assert front["model-index"][0]["name"] == folder.name


def test_what_is_not_measured_is_said(folder):
    text = text_of(folder)
    for name in ("clean", "PGD-20", "AutoAttack (standard)"):
        assert f"| {name} |  | not measured |" in text
    assert section(text, "Honesty flags").endswith("\n\nnot measured\n\n")
    assert "The paper has no number for this very network and data set." in text
    assert "Licence: not stated." in text
    assert "model-index" not in text
    assert "datasets:" not in text


def test_the_searchs_own_numbers_stand_in_until_others_are_there(searched, tmp_path):
    own = section(text_of(searched), "Ticket r0.05")
    assert "| 61.25 | 56.39 to 65.90 | 400 |" in own
    assert "| 34.75 |" in own
    assert "measured by the search itself" in own
    assert "| AutoAttack (standard) |  | not measured |" in own
    write_card(searched, [put(tmp_path / "a.json", result("ticket", network(searched)))])
    own = section(text_of(searched), "Ticket r0.05")
    assert "34.75" not in own
    assert "61.25" not in own
    assert "| 70.00 |" in own
    write_card(searched, about={"notes": ["a note"]})
    text = text_of(searched)
    for fact in ("17, after", "49,000 to learn from", "pgd, 7 steps, Linf, eps 8/255", "float32", "a test", "- a note"):
        assert fact in text, fact
    searching = "\npython recipes/search.py --model test_resnet --dataset cifar10\n"
    assert searching in section(text, "How it was searched")


def test_the_searchs_own_numbers_stay_where_they_are_of_more_images(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(ticket_results, "SAMPLES", 300)
    write_card(searched, [put(tmp_path / "a.json", result("ticket", network(searched), clean=250))])
    text = text_of(searched)
    own = section(text, "Ticket r0.05")
    assert "| 61.25 | 56.39 to 65.90 | 400 | 2 |" in own
    assert "| PGD-20 | Linf, eps 8/255 | 34.75 |" in own
    assert "| 83.33 |" in own
    lead = section(text, "Measured")
    assert "400 samples" not in lead
    assert "300 samples" in lead


def test_an_r2s_leads_with_the_attackers_who_know_its_members(pair, tmp_path):
    assert "**R2S against attackers who know all its members: not measured.**" in text_of(pair)
    put(tmp_path / "t.json", transfer(pair))
    write_card(pair, [tmp_path / "t.json"])
    assert "**R2S against attackers who know all its members: not measured.**" in text_of(pair)
    said = result("r2s", network(pair), ("pgd20", "autoattack", "square100", "cw_l2"), (8,))
    write_card(pair, [put(tmp_path / "a.json", said)])
    text = text_of(pair)
    (worst,) = said["worst_case"]
    low, high = worst["interval_95"]
    lead = section(text, "Measured")
    assert f"- **{worst['accuracy']:.2f}% ({low} to {high}) in the worst of 12 attacks, Linf, eps 8/255, 1,000" in lead
    assert lead.count("- **") == 1
    assert "not measured" not in lead
    assert "an attacker who may retry until a member errs" in lead
    table = [line.split(" | ") for line in section(text, "R2S, all").splitlines() if "1,000 |" in line]
    named = {
        "| clean": said["clean"],
        "| worst of 12 attacks that know all members (PGD-20, gradients of all members (EOT); PGD-20 on the mean "
        "logits; PGD-20 on the mean probabilities; margin sum, 20 steps; ARC, 20 steps; Square, 100 queries; "
        "PGD-20 on the ensemble; AutoAttack (standard) on the ensemble; PGD-20 on each member alone; "
        "AutoAttack (standard) on each member alone)": worst,
        "| the paper's protocol (attacker and defender each draw a member): PGD-20": said["protocols"][0],
        "| the paper's protocol (attacker and defender each draw a member): PGD-20, stopped once it fools that member "
        "(the paper's code)": said["protocols"][1],
        "| the paper's protocol (attacker and defender each draw a member): AutoAttack (standard)": said["protocols"][
            2
        ],
        "| PGD-20, gradients of all members (EOT)": said["attacks"][0],
        "| PGD-20 on the mean logits": said["attacks"][1],
        "| PGD-20 on the mean probabilities": said["attacks"][2],
        "| margin sum, 20 steps": said["attacks"][3],
        "| ARC, 20 steps": said["attacks"][4],
        "| AutoAttack (standard) on the ensemble": said["attacks"][5],
        "| Square, 100 queries": said["attacks"][6],
        "| PGD-20 on the ensemble": said["attacks"][8],
        "| CW-L2 (median L2 distance of the broken 0.00)": said["attacks"][7],
        "| all members right, worst of the same 12 attacks": worst["all_members"],
        "| baseline: r0.05, the best single ticket, worst of the same 12 attacks": worst["best_ticket"],
        "| baseline: the ensemble of all, worst of the same 12 attacks": worst["ensemble"],
    }
    own = [line for line in table if "not recorded" not in line]  # the transfer matrix has no intervals
    assert [(line[0], line[2]) for line in own] == [(what, f"{one['accuracy']:.2f}") for what, one in named.items()]
    assert len(table) == len(own) + 2
    assert [position for position, line in enumerate(table) if "not recorded" in line] == [5, 6]
    assert 'r2s_from_pretrained("model_cards/pair")' in text
    assert 'timm.create_model("local-dir:model_cards/pair", pretrained=True, ticket=' in text


def test_an_r2s_without_a_worst_case_has_no_lead(pair, tmp_path):
    said = result("r2s", network(pair), ("cw_l2",), (8,))
    said["worst_case"] = []
    write_card(pair, [put(tmp_path / "a.json", said)])
    text = text_of(pair)
    assert "**R2S against attackers who know all its members: not measured.**" in text
    assert "| ARC, 20 steps | Linf, eps 8/255 |" in section(text, "R2S, all")


def test_an_r2ss_metadata_has_its_own_accuracies_only(pair, tmp_path):
    said = result("r2s", network(pair), ("pgd20", "autoattack"), (4, 8))
    write_card(pair, [put(tmp_path / "a.json", said)])
    found = ModelCard(text_of(pair)).data.eval_results
    metrics = [one for one in found if "tickets" in one.metric_args]
    assert len(found) == len(metrics) + 2  # what the search of one ticket measured
    rows = [row for row in said["attacks"] if row["crafted_on"] in ("all members", "their ensemble")]
    expected = [said["clean"], *said["worst_case"], *said["protocols"], *rows]
    assert [one.metric_value for one in metrics] == [row["accuracy"] for row in expected]
    assert [one.metric_type for one in metrics] == ["accuracy"] + 22 * ["robust_accuracy"]
    assert all(one.metric_name.endswith(", R2S, 1,000 samples") for one in metrics)
    assert all(one.metric_args["tickets"] == ["r0.05", "r0.1"] and "ticket" not in one.metric_args for one in metrics)
    all_of_them, ensemble, one = "all members, expectation over them", "all members, their ensemble", "one member drawn"
    attackers = [all_of_them] * 2 + [one] * 6 + [all_of_them] * 2 + [ensemble] * 4 + [all_of_them] * 4 + [ensemble] * 4
    said_there = [metric.metric_args["attacker"] for metric in metrics[1:]]
    assert [there.removesuffix(" at random") for there in said_there] == attackers
    eot = next(
        one
        for one in metrics
        if one.metric_name == "PGD-20, gradients of all members (EOT), Linf, eps 8/255, R2S, 1,000 samples"
    )
    assert eot.metric_value == said["attacks"][1]["accuracy"]
    beside = [one[key]["accuracy"] for one in said["worst_case"] for key in ("all_members", "best_ticket", "ensemble")]
    assert len(beside) == 6
    assert not {one.metric_value for one in metrics} & set(beside)


def test_a_readme_of_a_persons_is_kept(folder):
    readme = folder / "README.md"
    write_card(folder)
    write_card(folder, about={"notes": ["more"]})
    text = readme.read_text()
    assert "more" in text
    assert is_rendered(text)
    assert is_rendered(text.replace("\n", "\r\n"))
    for edited in (text.replace("more", "less"), "# Mine", text + "\nadded", "\n".join(text.split("\n")[:-2])):
        readme.write_text(edited)
        assert not is_rendered(edited)
        with pytest.raises(SettingsError, match=r"written or edited by hand: .* delete it or move it"):
            write_card(folder, about={"notes": ["again"]})
        assert readme.read_text() == edited
    assert read_about(folder) == {"notes": ["more"]}
    readme.unlink()
    assert write_card(folder) == [readme]


def test_the_same_folder_gives_the_same_card(folder, tmp_path):
    said = result("ticket", network(folder))
    write_card(folder, [put(tmp_path / "a.json", said)], {"repo_id": "org/x"})
    again = tmp_path / "elsewhere"
    folder.rename(again)
    assert render(again)["README.md"] == (again / "README.md").read_bytes() == render(again)["README.md"]
    assert [path.name for path in write_card(again, [tmp_path / "a.json"])] == ["README.md"]


def test_a_strangers_text_stays_text(folder, tmp_path):
    evil = "</td><script>a(1)</script> | `x` ![i](http://x)[l](js:x) $$x$$ \u202e {{ 1234 * 5678 }}\n\n# h\n---\na"
    said = result("ticket", network(folder), name=evil, chosen=evil)
    said["command"] = f"recipes/benchmark.py ```` {evil}"
    said["device"] = said["versions"]["torch"] = evil
    said["attacks"][0]["warnings"] = [evil]
    said["flags"]["checks"][0] |= {"check": evil, "found": evil * 50}
    said["flags"]["norm"] = evil
    write_card(folder, [put(tmp_path / "a.json", said)], {"license": evil, "notes": [evil], "dataset": {"note": evil}})
    text = (folder / "README.md").read_text()
    body = text.split("\n---\n", 1)[1]
    blocks = re.findall(r"^(`{3,})\w*\n.*?\n\1$", body, re.MULTILINE | re.DOTALL)
    assert "`````" in blocks
    prose = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", body, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in prose
    assert "{{" not in prose.replace("\\{\\{", "")
    assert "\u202e" not in text
    assert re.findall(r"(?<!\\)\]\(([^)]*)", prose) == ["https://arxiv.org/abs/2110.14068"]
    assert "\n# h" not in prose
    assert r"\{\{ 1234 \* 5678" in prose
    assert "7006652" not in prose
    lines = [line for line in prose.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert len(lines) > 20
    assert set(widths) <= {3, 4, 6, 8}
    assert max(len(line) for line in lines) < 4000
    assert ModelCard(text).data.license == " ".join(evil.replace("\u202e", " ").split())
    assert escaped("1. a") == "1\\. a"
    assert escaped("- a") == "\\- a"
    assert escaped("a_b") == "a\\_b"
    assert fenced(["a ``` b"]).startswith("````\n")


def test_refusals_are_of_one_family(tmp_path, folder):
    (folder / "card.json").write_text("{")
    for call in (lambda: render(tmp_path / "none"), lambda: read_about(folder), lambda: write_card(tmp_path / "none")):
        with pytest.raises(RstHubError):
            call()


def test_a_single_ticket_leads_with_its_lowest_accuracy_and_repeats_no_row(folder, tmp_path):
    put(tmp_path / "one.json", result("ticket", network(folder), attacks=("pgd20",), eps=(8,)))
    write_card(folder, [tmp_path / "one.json"])
    text = text_of(folder)
    (lead,) = [line for line in text.splitlines() if line.startswith("- **")]
    assert "under PGD-20, Linf, eps 8/255, 1,000 samples of cifar10" in lead
    assert "worst case of" not in text


def test_a_single_ticket_leads_with_most_samples_be_fewer_ones_easier_or_harder(folder, tmp_path, monkeypatch):
    found = {}
    for samples, clean in ((400, 300), (SAMPLES, 900), (600, 599)):
        monkeypatch.setattr(ticket_results, "SAMPLES", samples)
        said = result("ticket", network(folder), ("pgd20", "margin20"), (8,), clean=clean)
        found[samples], found[samples + 1] = said["worst_case"][0]["accuracy"], said["attacks"][0]["accuracy"]
        write_card(folder, [put(tmp_path / f"{samples}.json", said)])
    lead = section(text_of(folder), "Measured")
    shown = re.findall(r"- \*\*([\d.]+)% .* ([\d,]+) samples", lead)
    assert shown == [(f"{found[samples]:.2f}", f"{samples:,}") for samples in (SAMPLES, 600, 400)]
    assert found[400] < found[SAMPLES] < found[600]
    cleans = re.findall(r"^\| clean .* ([\d,]+) \| (\d) \|$", text_of(folder), re.MULTILINE)
    assert cleans == [("1,000", "1"), ("600", "2"), ("400", "3")]
    beside = re.findall(r"; of these samples PGD-20 leaves ([\d.]+)%, of those 1,000 ([\d.]+)%", lead)
    assert beside == [(f"{found[samples + 1]:.2f}", f"{found[SAMPLES + 1]:.2f}") for samples in (600, 400)]


def test_an_r2s_leads_with_every_worst_case_that_on_most_samples_first(pair, tmp_path, monkeypatch):
    worst = {}
    for samples, clean in ((400, 300), (SAMPLES, 900)):
        monkeypatch.setattr(ticket_results, "SAMPLES", samples)
        said = result("r2s", network(pair), ("pgd20",), (8,), clean=clean)
        worst[samples] = said["worst_case"][0]["accuracy"]
        write_card(pair, [put(tmp_path / f"{samples}.json", said)])
    lead = section(text_of(pair), "Measured")
    shown = re.findall(r"\*\*([\d.]+)% .* ([\d,]+) samples", lead)
    assert shown == [(f"{worst[SAMPLES]:.2f}", f"{SAMPLES:,}"), (f"{worst[400]:.2f}", "400")]
    assert "none of them AutoAttack" in lead
    assert lead.count("; of these samples PGD-20, gradients of all members (EOT) leaves ") == 1
    assert worst[400] < worst[SAMPLES]


CARDS = sorted(path for path in (ROOT / "model_cards").iterdir() if path.is_dir())


def test_there_are_cards():
    assert len(CARDS) >= 2


@pytest.mark.parametrize("published", CARDS, ids=lambda path: path.name)
def test_a_published_folder_is_what_is_rendered_from_it_and_loads(published):
    made = render(published)
    text = (published / "README.md").read_text(encoding="utf-8")
    there, again = ModelCard(text), ModelCard(made["README.md"].decode())
    assert again.text == there.text
    assert again.data.to_dict() == there.data.to_dict()
    assert is_rendered(text)
    pictures = {path.name for path in published.glob("*.png")}
    assert pictures == set(made) - {"README.md"}
    for name in pictures:
        assert picture_digest((published / name).read_bytes()) == picture_digest(made[name]), name
    for name in ticket_names(published):
        Ticket.load(published, name).verify()
        assert from_pretrained(published, ticket=name).num_classes == 10
    size = sum(path.stat().st_size for path in published.rglob("*") if path.is_file())
    assert size / len(ticket_names(published)) < 3_000_000  # it lives in git; with six tickets there are six to load
    assert all(path.stat().st_size < 3_000_000 for path in published.glob("*.safetensors"))


def other_seed(searched, seed, **changed):
    """Return a result of the same search with another seed, less accurate the higher the seed."""
    (entry,) = network(searched)["tickets"]
    about = {**network(searched), "init": {**network(searched)["init"], "seed": seed}}
    about["tickets"] = [{**entry, "sha256": f"{seed:064d}"}]
    said = result("ticket", about, ("pgd20", "autoattack"), clean=700 - 10 * seed)
    settings = {**SEARCHED["settings"], "seed": seed, "score_seed": seed, "test_samples": 5, **changed}
    return {**said, "origins": [{**SEARCHED, "settings": settings, "command": f"recipes/search.py --seed {seed}"}]}


def test_other_seeds_of_the_same_search_stand_beside_the_first(searched, tmp_path):
    files = [put(tmp_path / "0.json", result("ticket", network(searched), ("pgd20", "autoattack")))]
    files += [put(tmp_path / f"{seed}.json", other_seed(searched, seed)) for seed in (2, 11)]
    write_card(searched, files)
    text = text_of(searched)
    rows = [line for line in section(text, "Ticket r0.05: 3 seeds").splitlines() if line.startswith("|")]
    assert rows[0] == "| | budget | seed 0 | seed 2 | seed 11 | mean | samples |"
    assert rows[2] == "| clean | not attacked | 70.00 | 68.00 | 59.00 | 65.67 | 1,000 |"
    assert rows[3] == "| PGD-20 | Linf, eps 8/255 | 66.90 | 64.90 | 55.90 | 62.57 | 1,000 |"
    assert rows[4] == "| AutoAttack (standard) | Linf, eps 8/255 | 63.80 | 61.80 | 52.80 | 59.47 | 1,000 |"
    assert len(rows) == 6
    assert "; over seeds 0, 2 and 11 59.47% on average, 52.80 to 63.80" in section(text, "Measured")
    assert text.count("recipes/search.py --seed 11") == 1
    # Nothing else of the card takes them for the folder's own.
    own = section(text, "Ticket r0.05: 5% of")
    assert "| 70.00 |" in own
    assert "| 68.00 |" not in own
    assert {row.metric_value for row in ModelCard(text).data.eval_results} == {70.0, 66.9, 63.8}
    assert (searched / "results").is_dir()
    assert len(list((searched / "results").iterdir())) == 3


def test_a_search_from_before_the_options_is_the_same_without_them(searched, tmp_path):
    files = [put(tmp_path / "0.json", result("ticket", network(searched), ("pgd20", "autoattack")))]
    none = {"loss": "cross_entropy", "ema": 0.0, "climb": 0.0, "layer_ratios": "uniform", "trades_beta": 6.0}
    write_card(searched, [*files, put(tmp_path / "1.json", other_seed(searched, 1, **none))])
    assert (searched / "results" / "ticket-r0.05-cifar10-Linf-s1-n1000.json").exists()
    with pytest.raises(TicketError, match=r"another search: ema is '0\.0' here and '0\.9' there"):
        write_card(searched, [put(tmp_path / "2.json", other_seed(searched, 2, **{**none, "ema": 0.9}))])


def test_other_seeds_stand_beside_the_same_measurement_only(searched, tmp_path):
    own = put(tmp_path / "0.json", result("ticket", network(searched), ("pgd20", "autoattack")))
    other = other_seed(searched, 1)
    odd = [
        {**other, "dataset": {**other["dataset"], "chosen": "others"}},
        {**other, "images": {"size": 64, "resize": "none"}},
        {**other, "precision": "bf16"},
    ]
    for said in odd:
        with pytest.raises(
            SettingsError, match=r"seed 1, and nothing of the folder's own tickets was measured like it"
        ):
            write_card(searched, [own, put(tmp_path / "1.json", said)])
    twin = other_seed(searched, 1)
    twin["network"]["tickets"][0]["sha256"] = "1" * 64
    twin["clean"]["accuracy"] = 50.0
    with pytest.raises(SettingsError, match=r"are of two tickets r0\.05 of seed 1: remove one"):
        write_card(searched, [own, put(tmp_path / "1.json", other), put(tmp_path / "2.json", twin)])
    assert not (searched / "results").exists()


def test_an_r2s_has_a_table_of_seeds_without_its_baselines(pair, tmp_path):
    config = json.loads((pair / "config.json").read_text())
    for entry in config["rst"]["tickets"]:  # written by hand, as the pair of a test has no provenance of a search
        origin = {**SEARCHED, "command": f"recipes/search.py --remaining-ratio {entry['remaining_ratio']}"}
        ticket = replace(Ticket.load(pair, entry["name"]), provenance=origin)
        ticket.save(tmp_path / "searched-pair")
    folder = tmp_path / "searched-pair"
    about = network(folder)
    there = {**about, "init": {**about["init"], "seed": 7}}
    there["tickets"] = [{**entry, "sha256": "7" * 64} for entry in about["tickets"]]
    origins = [entry["provenance"] for entry in read_config(folder)["rst"]["tickets"]]
    other = {**result("r2s", there, ("pgd20",), clean=650), "origins": origins}
    own = put(tmp_path / "a.json", result("r2s", about, ("pgd20",)))
    write_card(folder, [own, put(tmp_path / "b.json", other)])
    table = section(text_of(folder), "R2S: 2 seeds")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == "| | budget | seed 0 | seed 7 | mean | samples |"
    assert rows[2].startswith("| clean | not attacked |")
    assert len(rows) > 8
    assert not any("baseline" in row or "not measured" in row for row in rows)
    for ratio in (0.05, 0.1):
        assert f"recipes/search.py --remaining-ratio {ratio}\n" in table


@pytest.mark.parametrize("changed", [{"epochs": 21}, {"eps": 4.0}, {"dataset": "cifar100"}])
def test_another_search_is_not_another_seed(searched, tmp_path, changed):
    with pytest.raises(TicketError, match=f"another search: {next(iter(changed))} is"):
        write_card(searched, [put(tmp_path / "a.json", other_seed(searched, 1, **changed))])
    said = other_seed(searched, 1)
    said.pop("origins")
    with pytest.raises(TicketError, match="another search"):
        write_card(searched, [put(tmp_path / "a.json", said)])
    said = other_seed(searched, 1)
    said["network"]["architecture"] = "resnet18"
    with pytest.raises(TicketError, match="another search: architecture is 'test_resnet' here"):
        write_card(searched, [put(tmp_path / "a.json", said)])
    assert not (searched / "results").exists()


def test_a_dense_network_says_how_it_was_trained(folder, tmp_path):
    origin = {**SEARCHED, "command": "recipes/train.py --model test_resnet", "seconds": 12.5}
    said = {**result("dense", {"source": "natural", "architecture": "ResNet"}), "origins": [origin]}
    write_card(folder, [put(tmp_path / "a.json", said)])
    dense = section(text_of(folder), "Dense networks")
    assert "recipes/train.py --model test\\_resnet" not in dense
    assert "```\npython recipes/train.py --model test_resnet\n```" in dense
    assert "Epochs: 20;" in dense
    assert "sgd of all weights" in dense
    assert "Time: 12.5 s" in dense
    assert "Attack in the loop: pgd, 7 steps, Linf, eps 8/255" in dense
    natural = {**origin, "settings": {**origin["settings"], "attack": "none"}}
    said["network"]["source"] = "other"
    write_card(folder, [put(tmp_path / "b.json", {**said, "origins": [natural]})])
    assert "Attack in the loop: none;" in text_of(folder)


def test_a_card_says_what_the_search_had_beyond_the_paper(tmp_path):
    popup = make_popup()
    settings = {**SEARCHED["settings"], "loss": "trades", "trades_beta": 6.0, "ema": 0.995, "climb": 0.005}
    origin = {**SEARCHED, "settings": {**settings, "layer_ratios": "erk"}}
    erk = EdgePopup(popup.model, popup.init, 0.1, layer_ratios="erk")
    text = text_of(Ticket.draw(erk, provenance=origin).save(tmp_path / "erk"))
    assert "10% of the network's weights" in section(text, "Ticket r0.1: 10% of the network's weights")
    beyond = next(line for line in text.splitlines() if line.startswith("| Beyond the paper |"))
    for lift in ("TRADES with beta 6;", "decay 0.995 of", "uphill by 0.005 of", "Erdos-Renyi kernel"):
        assert lift in beyond
    assert "Beyond the paper" not in text_of(Ticket.draw(popup, provenance=SEARCHED).save(tmp_path / "plain"))
