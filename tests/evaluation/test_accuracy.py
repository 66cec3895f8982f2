import functools
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from rst_hub import ThreatModel, bandits, clean_accuracy, fgsm, pgd, robust_accuracy, transfer_matrix
from rst_hub.attacks.names import NamedAttack, named_attack
from rst_hub.errors import DataError, RstHubError, SettingsError
from rst_hub.evaluation.accuracy import evaluate, interval, join, outcomes, percent, read_journal, worst_case
from rst_hub.evaluation.transfer import transfer_outcomes


class Brightest(nn.Module):
    """Says which channel is the brightest."""

    def forward(self, x):
        return x.mean((2, 3))


def batches(count=10):
    x = torch.zeros(count, 3, 4, 4)
    y = torch.arange(count) % 3
    x[torch.arange(count), y] = 0.5
    x[0] = x[0].flip(0)  # the first is wrong
    return [(x[:4], y[:4]), (x[4:], y[4:])]


def test_accuracies_are_percentages_of_per_sample_outcomes():
    model = Brightest()
    assert outcomes(model, batches()).tolist() == [0.0] + [1.0] * 9
    assert clean_accuracy(model, batches()) == 90.0
    assert robust_accuracy(model, batches(), functools.partial(pgd, threat_model=ThreatModel(eps=0.2))) == 90.0
    strong = functools.partial(pgd, threat_model=ThreatModel(eps=0.3), step_size=0.1)
    assert robust_accuracy(model, batches(), strong) == 0.0


def test_eps_zero_is_clean_accuracy():
    assert robust_accuracy(Brightest(), batches(), functools.partial(pgd, threat_model=ThreatModel(eps=0))) == 90.0


def test_a_model_is_measured_in_eval_mode_and_put_back_module_by_module():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), Brightest())
    model.train()
    model[0].eval()
    statistics = model[0].running_mean.clone()
    assert clean_accuracy(model, batches()) == 90.0
    assert [module.training for module in model] == [False, True, True]
    assert torch.equal(model[0].running_mean, statistics)
    with pytest.raises(DataError):
        clean_accuracy(model, [(torch.full((1, 3, 4, 4), 2.0), torch.tensor([0]))])
    assert [module.training for module in model] == [False, True, True]


def test_bad_input_is_an_error_never_a_number():
    x, y = batches()[0]
    with pytest.raises(DataError, match="pixels reach"):
        clean_accuracy(Brightest(), [(x * 255, y)])
    with pytest.raises(DataError, match="pixels reach"):
        clean_accuracy(Brightest(), [(x * float("nan"), y)])
    for measure in (
        clean_accuracy,
        functools.partial(robust_accuracy, attack=functools.partial(pgd, threat_model=ThreatModel())),
    ):
        with pytest.raises(DataError, match="3 logits"):
            measure(Brightest(), [(x, y + 3)])
    with pytest.raises(DataError, match="no samples"):
        clean_accuracy(Brightest(), [])
    with pytest.raises(DataError, match="no samples"):
        join(evaluate(Brightest(), []))
    for wrong in ((x.double(), y), (x, y.int())):
        with pytest.raises(DataError, match="give"):
            clean_accuracy(Brightest(), [wrong])
    with pytest.raises(DataError, match="must keep them"):
        robust_accuracy(Brightest(), [(x, y)], lambda model, x, y: x[:1])
    with pytest.raises(RstHubError, match="the attack's pixels are not finite"):
        robust_accuracy(Brightest(), [(x, y)], lambda model, x, y: x * float("nan"))
    with pytest.raises(DataError, match="two batches have the number 0"):
        evaluate(Brightest(), [(0, x, y), (0, x, (y + 1) % 3)])
    for bad in ([], [torch.ones(3), torch.ones(4)]):
        with pytest.raises(DataError, match="worst case"):
            worst_case(bad)
    with pytest.raises(DataError, match=r"pixels reach from .* to 1\.5"):  # an attack that leaves the pixel range
        robust_accuracy(Brightest(), [(x, y)], lambda model, x, y: x + 1)
    with pytest.raises(RstHubError, match="not finite"):
        clean_accuracy(nn.Sequential(Brightest(), nn.Threshold(9, float("nan"))), [(x, y)])


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


def numbered(count=6, size=8, shard=(0, 1)):
    generator = torch.Generator().manual_seed(0)
    made = [(n, torch.rand(size, 3, 8, 8, generator=generator)) for n in range(count)]
    return [(n, x, network(0)(x).argmax(1)) for n, x in made][shard[0] :: shard[1]]


PGD = named_attack("pgd5", ThreatModel(eps=2 / 255), 8)


def test_any_number_of_processes_gives_one_answer():
    model = network(0)
    whole = join(evaluate(model, numbered(), PGD, seed=3))
    for processes in (2, 4):
        parts = [
            part
            for rank in range(processes)
            for part in evaluate(model, numbered(shard=(rank, processes)), PGD, seed=3)
        ]
        shared = join(reversed(parts))
        assert torch.equal(shared.correct, whole.correct)
        assert torch.equal(shared.linf, whole.linf)
    assert 0 < percent(whole.correct) < 100
    assert len(whole.correct) == 48
    assert float(whole.linf.max()) <= 2 / 255 + 1e-6
    assert not torch.equal(join(evaluate(model, numbered(), PGD, seed=4)).l2, whole.l2)


def test_an_interrupted_evaluation_goes_on_to_the_same_answer(tmp_path):
    model, journal = network(0), tmp_path / "journal.jsonl"
    whole = join(evaluate(model, numbered(), PGD))

    def interrupted():
        for count, batch in enumerate(numbered()):
            if count == 4:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, interrupted(), PGD, journal=journal)
    assert len(read_journal(journal)) == 4
    text = journal.read_text()
    journal.write_text(text[:-20])  # the last line is torn
    assert len(read_journal(journal)) == 3
    attacked = []

    @functools.wraps(pgd)
    def counted(*arguments, **settings):
        attacked.append(1)
        return pgd(*arguments, **settings)

    counting = NamedAttack("counting", counted, PGD.threat_model, PGD.settings)
    rest = join(evaluate(model, numbered(), counting, done=read_journal(journal), journal=journal))
    assert len(attacked) == 3
    assert torch.equal(rest.correct, whole.correct)
    assert torch.equal(rest.l2, whole.l2)
    assert sorted(part.batch for part in read_journal(journal)) == list(range(6))
    with pytest.raises(DataError, match="other samples"):
        evaluate(model, numbered(size=7), PGD, done=read_journal(journal))
    assert read_journal(tmp_path / "absent.jsonl") == []


def test_the_bar_counts_images_and_outcomes_say_how_many_a_second(capsys):
    model, data = network(0), numbered(6, 8)
    parts = evaluate(model, data, PGD, progress="PGD", total=48)
    shown = capsys.readouterr().err
    assert "PGD" in shown
    assert "/48" in shown
    assert "img/s" in shown
    found = join(parts)
    assert found.images_per_second == pytest.approx(48 / sum(part.seconds for part in parts))
    assert join([replace(part, seconds=0.0) for part in parts]).images_per_second == 480_000  # a journal rounds to 0


def test_an_evaluation_does_not_hang_on_memory():
    class Small(nn.Module):
        def __init__(self, most):
            super().__init__()
            self.network, self.most = network(0).double(), most

        def forward(self, x):
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.network(x.double())

    for name in ("pgd3", "square20", "fgsm"):
        attack = named_attack(name, ThreatModel(eps=2 / 255), 8)
        whole, parts = (join(evaluate(Small(most), numbered(), attack)) for most in (8, 3))
        assert torch.equal(whole.correct, parts.correct)
        assert torch.allclose(whole.l2, parts.l2, atol=1e-5)
        assert 0 < percent(whole.correct) < 100


def test_judges_answer_what_is_crafted_on_another(tmp_path):
    models, journal = [network(0), network(1)], tmp_path / "journal.jsonl"
    attack = named_attack("pgd5", ThreatModel(eps=2 / 255), 8)
    crossed = transfer_outcomes(
        models, numbered(), functools.partial(attack.function, threat_model=attack.threat_model, **attack.settings)
    )
    models[1].train()
    for i, source in enumerate(models):
        found = join(evaluate(source, numbered(), attack, judges=models))
        assert torch.equal(found.each, crossed[i])
        assert torch.equal(found.correct, crossed[i].mean(0))
    assert models[1].training
    alone = join(evaluate(models[0], numbered(), attack, journal=journal))
    assert torch.equal(alone.each, crossed[0][:1])
    assert not torch.equal(crossed[0][0], crossed[0][1])
    assert torch.equal(join(read_journal(journal)).each, alone.each)
    with pytest.raises(DataError, match="other samples"):
        evaluate(models[0], numbered(), attack, judges=models, done=read_journal(journal))
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        del line["each"]  # as it was before there were judges
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert len(lines) == 6
    assert read_journal(journal) == []


def test_members_are_measured_by_their_exact_expectation():
    x, y = numbered(1)[0][1:]
    members = [network(0), network(1), network(2)]
    expected = sum((member(x).argmax(1) == y).double() for member in members) / 3
    assert torch.allclose(outcomes(members, [(x, y)]), expected)
    assert 100 / 3 < clean_accuracy(members, [(x, y)]) < 100
    members[1].train()
    clean_accuracy(members, [(x, y)])
    assert [member.training for member in members] == [False, True, False]


def test_several_attacks_leave_what_withstands_them_all():
    left = worst_case([torch.tensor([1.0, 1.0, 0.0, 0.5]), torch.tensor([1.0, 0.0, 1.0, 0.25])])
    assert left.tolist() == [1.0, 0.0, 0.0, 0.25]
    model, batches_ = network(0), [(x, y) for _, x, y in numbered()]
    single = [
        outcomes(model, batches_, functools.partial(a, threat_model=ThreatModel(eps=2 / 255))) for a in (fgsm, pgd)
    ]
    assert percent(worst_case(single)) <= min(percent(one) for one in single)


def test_the_interval_is_wilsons():
    # 8 of 10: Wilson (1927), z = 1.96
    low, high = interval(torch.tensor([1.0] * 8 + [0.0] * 2))
    assert (round(low, 2), round(high, 2)) == (49.02, 94.33)
    low, high = interval(torch.ones(100))
    assert (round(low, 1), high) == (96.3, 100.0)
    low, high = interval(torch.zeros(100))
    assert low == 0.0
    assert round(high, 1) == 3.7
    with pytest.raises(SettingsError, match="confidence"):
        interval(torch.ones(3), 1.0)
    wide, narrow = (interval(torch.tensor([1.0, 0.0] * n)) for n in (10, 1000))
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws = (torch.rand(1000, 200, generator=generator) < 0.9).double()
    covered = sum(low <= 90 <= high for low, high in map(interval, draws))
    assert 930 <= covered <= 970


def test_black_box_queries_and_distortions_are_recorded():
    attack = named_attack("bandits20", ThreatModel(eps=2 / 255), 8)
    assert attack.function is bandits
    found = join(evaluate(network(0), numbered(2), attack))
    assert int(found.queries.max()) == 20
    assert float(found.linf.max()) <= 2 / 255 + 1e-6
    assert bool((found.l2 >= found.linf).all())


def test_the_transfer_matrix_crafts_on_rows_and_tests_on_columns():
    models, data = [network(0), network(1)], [(x, y) for _, x, y in numbered(4, 32)]
    attack = functools.partial(pgd, threat_model=ThreatModel(eps=2 / 255), steps=10, random_start=False)
    matrix = transfer_matrix(models, data, attack)
    for i, source in enumerate(models):
        crafted = [(attack(source, x, y), y) for x, y in data]
        assert matrix[i] == [clean_accuracy(model, crafted) for model in models]
    assert matrix[0][0] < matrix[1][0]  # crafted on itself is worse for network 0, whose labels these are
    right = transfer_outcomes(models, [(n, x, y) for n, (x, y) in enumerate(data)], attack)
    assert right.shape == (2, 2, 128)


def test_attacks_that_draw_give_the_same_answer_each_time():
    model, data = network(0), [(x, y) for _, x, y in numbered(2, 100)]
    state = torch.get_rng_state()
    attack = functools.partial(pgd, threat_model=ThreatModel(eps=2 / 255), steps=1, step_size=1 / 255)
    one, same, other = (outcomes(model, data, attack, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(outcomes(model, data, PGD), outcomes(model, data, PGD))  # by its name too
    models = [model, network(1)]
    assert transfer_matrix(models, data, attack) == transfer_matrix(models, data, attack)
    own = functools.partial(attack, generator=torch.Generator().manual_seed(7))
    assert not torch.equal(outcomes(model, data, own), outcomes(model, data, own))  # a generator that is given goes on


def test_the_papers_protocol_stops_where_the_source_is_fooled():
    # Network 1 needs a little more of the same direction than network 0 to be fooled.
    class Towards(nn.Module):
        def __init__(self, border):
            super().__init__()
            self.border = border

        def forward(self, x):
            value = x.mean((1, 2, 3))
            return torch.stack([torch.zeros_like(value), value - self.border], 1)

    x, y = torch.full((4, 3, 2, 2), 0.5), torch.ones(4, dtype=torch.long)
    models = [Towards(0.45), Towards(0.40)]
    attack = functools.partial(pgd, threat_model=ThreatModel(eps=0.2), step_size=0.02, random_start=False)
    assert transfer_matrix(models, [(x, y)], attack) == [[0.0, 0.0], [0.0, 0.0]]
    assert transfer_matrix(models, [(x, y)], attack, paper_protocol=True) == [[0.0, 100.0], [0.0, 0.0]]
    with pytest.raises(SettingsError, match="keep="):
        transfer_matrix(models, [(x, y)], functools.partial(fgsm, threat_model=ThreatModel()), paper_protocol=True)
    modes = [model.train() for model in models]
    transfer_matrix(models, [(x, y)], attack)
    assert all(model.training for model in modes)
