import json
import shutil
import tempfile
import traceback

import hub_server
import pytest
from conftest import ROOT, make_popup, run_recipe
from hub_server import FAULTS, REPOS, REQUESTS, Fault, add_commit, close_pull_request, files_of, head

import rst_hub
from rst_hub.cards.results import read_results
from rst_hub.errors import HubError, IntegrityError, SettingsError, TicketError
from rst_hub.hub.push import Pushed, plan_push, push_to_hub, pushed_to_hub
from rst_hub.tickets.digests import digest

WRITER = "hf_writer"


@pytest.fixture(autouse=True)
def fresh_hub():
    hub_server.reset()
    yield
    hub_server.reset()


def push(folder, repo="org/rst-x", **options):
    return push_to_hub(folder, repo, **{"token": WRITER, **options})


def commits(repo="org/rst-x"):
    return len(REPOS[repo].commits)


def writes():
    return [request for request in REQUESTS if not request.startswith(("GET", "HEAD", "POST /api/validate-yaml"))]


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_push_is_one_commit_that_loads_bit_for_bit(folder, ticket):
    url = push(folder)
    there = files_of("org/rst-x")
    assert url == f"{hub_server.ENDPOINT}/org/rst-x/commit/{head('org/rst-x')}"
    ours = {name: there[name] for name in there if name != ".gitattributes"}
    assert ours == content(folder)  # the folder has got the card that was sent
    assert set(ours) == {"README.md", "card.json", "config.json", "ticket-r0.1.safetensors"}
    assert sum("/commit/" in request for request in REQUESTS) == 1
    loaded, made = rst_hub.from_pretrained("org/rst-x").state_dict(), ticket.state_dict()
    assert digest(loaded, loaded) == digest(made, made)
    assert 'from_pretrained("org/rst-x")' in there["README.md"].decode()
    (row,) = rst_hub.list_models()
    assert (row.repo, row.ticket, row.remaining_ratio) == ("org/rst-x", "r0.1", 0.1)


def test_pushing_again_changes_nothing_and_a_new_ticket_is_all_that_is_sent(folder):
    first = push(folder)
    before = commits()
    REQUESTS.clear()
    assert push(folder) == first
    assert commits() == before
    assert writes() == []
    assert pushed_to_hub(folder, "org/rst-x", token=WRITER) == Pushed(first, "branch main", (), (), "")
    rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    REQUESTS.clear()
    push(folder)
    assert commits() == before + 1
    assert {name for name in files_of("org/rst-x") if name.startswith("ticket-")} == {
        "ticket-r0.1.safetensors",
        "ticket-r0.2.safetensors",
    }
    assert sum(request.startswith("PUT") for request in REQUESTS) == 1  # the old ticket was not sent again


@pytest.mark.parametrize("kind", ["drop_after", 500, "drop"])
def test_a_lost_answer_does_not_publish_twice(folder, kind):
    push(folder)
    rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    before = commits()
    FAULTS.append(Fault("POST", "/commit/", kind))
    if kind == "drop_after":  # it was made, though nobody said so
        assert push(folder).endswith(head("org/rst-x"))
    else:
        with pytest.raises(HubError, match="nothing was published to org/rst-x"):
            push(folder)
        assert commits() == before
        push(folder)
    assert commits() == before + 1
    assert not FAULTS
    push(folder)
    assert commits() == before + 1


def test_an_upload_that_breaks_off_leaves_nothing_and_goes_on(folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits longer and longer between attempts
    FAULTS.extend([Fault("PUT", "", "drop", times=20)])
    with pytest.raises(HubError, match="nothing was published"):
        push(folder)
    assert "config.json" not in files_of("org/rst-x")
    FAULTS.clear()
    push(folder)
    rst_hub.from_pretrained("org/rst-x")


def test_what_changed_meanwhile_is_not_overwritten(folder, tmp_path, monkeypatch):
    import rst_hub.hub.push as publish

    push(folder)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    rst_hub.Ticket.draw(make_popup(remaining_ratio=0.3)).save(other)
    compared = publish.compare_with_hub

    def then_someone_else_pushes(*arguments):
        plan = compared(*arguments)
        monkeypatch.setattr(publish, "compare_with_hub", compared)
        push(other)
        return plan

    monkeypatch.setattr(publish, "compare_with_hub", then_someone_else_pushes)
    with pytest.raises(HubError, match="somebody else has changed it meanwhile"):
        push(folder)
    assert "ticket-r0.3.safetensors" in files_of("org/rst-x")
    assert "ticket-r0.2.safetensors" not in files_of("org/rst-x")


def test_a_ticket_that_is_gone_here_is_deleted_there_and_a_strangers_file_stays(folder, tmp_path):
    rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    push(folder)
    extended = tmp_path / "extended"
    shutil.copytree(folder, extended)
    for name, body in files_of("org/rst-x").items():
        (extended / name).write_bytes(body)
    (extended / "LICENSE").write_text("Apache")
    add_commit("org/rst-x", extended)
    alone = tmp_path / "alone"
    rst_hub.Ticket.load(folder, "r0.1").save(alone)
    (alone / "notes.txt").write_text("not to be sent")
    for refused in (push, lambda *arguments: plan_push(*arguments, token=WRITER)):
        with pytest.raises(SettingsError, match=r"ticket-r0\.2\.safetensors, which this would delete or change"):
            refused(alone, "org/rst-x")
    plan = plan_push(alone, "org/rst-x", token=WRITER, replace=True)
    assert plan.deleted == ("ticket-r0.2.safetensors",)
    push(alone, replace=True)
    names = set(files_of("org/rst-x"))
    assert "ticket-r0.2.safetensors" not in names
    assert "LICENSE" in names
    assert "notes.txt" not in names


def test_branches_tags_and_pull_requests(folder):
    push(folder)
    main = head("org/rst-x")
    rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    push(folder, revision="dev/x")
    assert head("org/rst-x") == main
    assert "ticket-r0.2.safetensors" in files_of("org/rst-x", "dev/x")
    loaded = rst_hub.from_pretrained("org/rst-x", revision="dev/x", remaining_ratio=0.2)
    assert loaded is not None
    url = push(folder, create_pr=True)
    assert url.endswith("/discussions/1")
    assert head("org/rst-x") == main
    assert push(folder, create_pr=True) == url  # it is open already
    FAULTS.append(Fault("POST", "/commit/", "drop_after"))
    close_pull_request("org/rst-x", 1)
    second = push(folder, create_pr=True)
    assert second.endswith("/discussions/2")
    assert len(REPOS["org/rst-x"].pull_requests) == 2
    with pytest.raises(SettingsError, match="revision"):
        push(folder, revision="../x")


def test_private_stays_private_and_public_is_never_pushed_to_by_mistake(folder):
    push(folder, "org/rst-secret", private=True)
    assert REPOS["org/rst-secret"].private
    with pytest.raises(HubError, match="no such repository on the Hub, or it is private"):
        rst_hub.from_pretrained("org/rst-secret")
    rst_hub.from_pretrained("org/rst-secret", token="hf_reader")
    assert rst_hub.list_models() == []
    assert [row.repo for row in rst_hub.list_models(token="hf_reader")] == ["org/rst-secret"]
    push(folder)
    before = commits()
    (folder / "card.json").unlink()
    rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    with pytest.raises(SettingsError, match="is there and public"):
        push(folder, private=True)
    assert commits() == before


def test_who_may_not_write_is_told_what_to_do(folder):
    before = content(folder)
    for token, message in ((False, "log in"), ("hf_reader", "no right to do that"), ("hf_wrong", "log in")):
        with pytest.raises(HubError, match=message):
            push(folder, token=token)
    assert REPOS == {}
    for name in ("rst-x", "hf://org/rst-x", "org/rst-x@main", "a/b/c", "", "org/..", "../..", "org/a--b", "org/x."):
        with pytest.raises(SettingsError, match="not the name of a repository"):
            push(folder, name)
    assert content(folder) == before


def test_a_damaged_ticket_is_not_published(folder):
    path = folder / "ticket-r0.1.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(IntegrityError, match="it is not the file that config"):
        push(folder)
    assert REPOS == {}
    assert REQUESTS == []
    with pytest.raises(TicketError, match="not a folder"):
        push(folder / "absent")


def test_a_link_to_what_is_elsewhere_is_not_sent(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "card.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(SettingsError, match="link to a file outside"):
        push(folder)
    assert REPOS == {}


def test_a_card_that_somebody_wrote_on_the_hub_is_not_overwritten(folder, tmp_path):
    push(folder)
    edited = tmp_path / "edited"
    shutil.copytree(folder, edited)
    (edited / "README.md").write_text((folder / "README.md").read_text() + "\nMy own words.\n")
    add_commit("org/rst-x", edited)
    rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    with pytest.raises(SettingsError, match="was written by hand"):
        push(folder)
    assert "My own words." in files_of("org/rst-x")["README.md"].decode()
    assert push(folder, create_pr=True).endswith("/discussions/1")
    (edited / "README.md").write_text("---\nlicense: mit\n---\n")  # what the Hub writes into a new repository
    add_commit("org/rst-x", edited)
    push(folder)


def test_a_dry_run_sends_and_writes_nothing(folder):
    before = content(folder)
    plan = plan_push(folder, "org/rst-x", token=WRITER)
    assert not plan.exists
    assert set(plan.changed) == {"README.md", "card.json", "config.json", "ticket-r0.1.safetensors"}
    assert writes() == []
    assert content(folder) == before
    assert json.loads(plan.files["card.json"])["repo_id"] == "org/rst-x"
    push(folder)
    plan = plan_push(folder, "org/rst-x", token=WRITER)
    assert plan.exists
    assert plan.changed == plan.deleted == ()


def test_the_recipe_gathers_describes_and_sends(tmp_path):
    for ratio in (0.05, 0.1):
        rst_hub.Ticket.draw(make_popup(remaining_ratio=ratio)).save(tmp_path / str(ratio))
    tickets, folder = f"{tmp_path / '0.05'},{tmp_path / '0.1'}", tmp_path / "model_cards" / "rst-set"
    arguments = ("--tickets", tickets, "--folder", folder, "--license", "apache-2.0", "--repo", "org/rst-set")
    online = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITER}
    said = run_recipe("publish.py", *arguments, "--dataset-note", "JPEG-recompressed", "--private", **online).stdout
    assert f"published {folder}: {hub_server.ENDPOINT}/org/rst-set/commit/{head('org/rst-set')}" in said
    assert REPOS["org/rst-set"].private
    ours = {name: body for name, body in files_of("org/rst-set").items() if name != ".gitattributes"}
    assert ours == content(folder)
    assert json.loads(ours["card.json"]) == {
        "repo_id": "org/rst-set",
        "license": "apache-2.0",
        "dataset": {"id": None, "note": "JPEG-recompressed"},
    }
    r2s = rst_hub.r2s_from_pretrained("org/rst-set", token=WRITER)
    assert r2s.names == ("r0.05", "r0.1")
    before = commits("org/rst-set")
    said = run_recipe("publish.py", "--folder", folder, "--repo", "org/rst-set", "--create-pr", **online).stdout
    assert "nothing to send, no pull request was opened: branch main of org/rst-set holds all of" in said
    assert "published" not in said
    assert commits("org/rst-set") == before


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "model_cards").iterdir()))
def test_a_published_folder_passes_the_hubs_checks(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(ROOT / "model_cards" / name, folder)
    push(folder, f"org/{name}")
    assert "POST /api/validate-yaml" in REQUESTS
    there = files_of(f"org/{name}")
    for path, body in content(ROOT / "model_cards" / name).items():
        assert path in there
        assert there[path] == body or path in ("README.md", "card.json")  # which have got the repository's name
    rows = rst_hub.list_models()
    assert {row.ticket for row in rows} == {path.stem.removeprefix("ticket-") for path in folder.glob("ticket-*")}
    measured = {(row.members, row.accuracy) for result in read_results(folder).values() for row in result.rows}
    for row in rows:
        assert row.dataset.split()[0] == name.rpartition("-")[2]  # a note may follow
        assert ((row.ticket,), row.clean_accuracy) in measured
        assert ((row.ticket,), row.robust_accuracy) in measured
        assert row.robust_accuracy < row.clean_accuracy


def test_another_ticket_of_the_same_name_needs_a_word(folder, tmp_path):
    push(folder)
    other = rst_hub.Ticket.draw(make_popup(init=rst_hub.Init(1))).save(tmp_path / "other")
    with pytest.raises(SettingsError, match=r"ticket-r0\.1\.safetensors, which this would delete or change"):
        push(other)
    push(other, replace=True)
    assert files_of("org/rst-x")["ticket-r0.1.safetensors"] == (other / "ticket-r0.1.safetensors").read_bytes()


def test_only_what_belongs_is_sent(folder):
    for name in ("results/private/secret.json", "results/.hidden.json", ".env", "ticket-notes.txt", "a/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("no JSON")
    push(folder)
    there = set(files_of("org/rst-x")) - {".gitattributes"}
    assert there == {"README.md", "card.json", "config.json", "ticket-r0.1.safetensors"}


def test_another_kind_of_model_is_not_overwritten(folder, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"architectures": ["Bert"]}')
    add_commit("org/bert", tmp_path / "bert")
    with pytest.raises(SettingsError, match="another kind of model"):
        push(folder, "org/bert")
    assert set(files_of("org/bert")) == {"config.json"}


def test_nothing_is_made_for_what_the_hub_would_refuse(folder):
    with pytest.raises(SettingsError, match="nothing to open a pull request for"):
        push(folder, create_pr=True)
    FAULTS.extend([Fault("POST", "/api/validate-yaml", 400, times=2)])
    for refused in (push, lambda *arguments: plan_push(*arguments, token=WRITER)):
        with pytest.raises(SettingsError, match="the Hub refuses the card's metadata"):
            refused(folder, "org/rst-x")
    assert REPOS == {}


def test_a_folder_that_cannot_be_written_says_that_it_is_published(folder, monkeypatch):
    import rst_hub.hub.push as publish

    def fail(contents):
        raise PermissionError("read-only")

    monkeypatch.setattr(publish, "write_files", fail)
    with pytest.raises(SettingsError, match=r"published as http.*read-only"):
        push(folder)
    assert "README.md" in files_of("org/rst-x")


def test_neither_a_linked_folder_of_results_nor_the_cache_is_published(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "results").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="results is a link"):
        push(folder)
    (folder / "results").unlink()
    snapshot = tmp_path / "models--org--x" / "snapshots" / "0123"
    shutil.copytree(folder, snapshot)
    with pytest.raises(SettingsError, match="copy it, and push the copy"):
        push(snapshot)
    assert REPOS == {}


def test_what_somebody_said_or_left_there_is_not_lost(folder, tmp_path):
    (folder / "card.json").write_text('{"license": "mit"}')
    push(folder)
    (folder / "card.json").unlink()
    with pytest.raises(SettingsError, match=r"says \['license'\]"):
        push(folder)
    push(folder, replace=True)
    (tmp_path / "stray" / "results").mkdir(parents=True)
    (tmp_path / "stray" / "results" / "eval.json").write_text("{}")
    add_commit("org/stray", tmp_path / "stray")
    with pytest.raises(SettingsError, match=r"has no config\.json, but files"):
        push(folder, "org/stray")
    assert set(files_of("org/stray")) == {"results/eval.json"}


def test_a_lost_answer_that_cannot_be_looked_up_says_so(folder, monkeypatch):
    import rst_hub.hub.push as publish

    push(folder)
    rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    FAULTS.append(Fault("POST", "/commit/", "drop_after"))
    REQUESTS.clear()
    compared = publish.compare_with_hub

    def compare(*arguments):
        if any("/commit/" in request for request in REQUESTS):
            raise HubError("no answer")
        return compared(*arguments)

    monkeypatch.setattr(publish, "compare_with_hub", compare)
    with pytest.raises(HubError, match="whether org/rst-x was published is not known, push again"):
        push(folder)
    monkeypatch.setattr(publish, "compare_with_hub", compared)
    assert push(folder).endswith(head("org/rst-x"))


def spoilt(folder):
    """Return by name what makes a folder's push fail after it was copied, and what its error says."""

    def edit(name, change):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))

    config = json.loads((folder / "config.json").read_text())
    config["rst"]["tickets"][0]["kept"] += 1
    wrong = json.dumps(config).encode()
    return {
        "README.md": (lambda: edit("README.md", lambda _: b"# mine"), r"README\.md was written or edited by hand"),
        "ticket": (lambda: edit("ticket-r0.1.safetensors", lambda old: old[:-1]), r"safetensors: it is not the file"),
        "config.json": (lambda: edit("config.json", lambda _: wrong), r"safetensors: config.json says something else"),
        "results": (lambda: edit("results/a.json", lambda _: b"[]"), r"results/a\.json is no result of"),
        "card.json": (lambda: edit("card.json", lambda _: b'{"licence": 1}'), r"card\.json: .*'licence' is not known"),
        "no JSON": (lambda: edit("card.json", lambda _: b"{"), r"card\.json cannot be read as JSON"),
    }


@pytest.mark.parametrize("what", ["README.md", "ticket", "config.json", "results", "card.json", "no JSON"])
def test_an_error_of_a_push_names_the_users_own_folder(folder, what, monkeypatch, tmp_path_factory):
    spoil, message = spoilt(folder)[what]
    spoil()
    hidden = tmp_path_factory.mktemp("hidden")  # where copies go; the tests themselves may lie below the usual place
    monkeypatch.setattr(tempfile, "tempdir", str(hidden))
    for refused in (push, lambda *arguments: plan_push(*arguments, token=WRITER)):
        with pytest.raises((TicketError, SettingsError), match=message) as refusal:
            refused(folder, "org/rst-x")
        printed = "".join(traceback.format_exception(refusal.value))
        assert f"{folder}/" in str(refusal.value)
        assert str(hidden) not in printed
        assert printed.count("ticket/ticket-r0.1.safetensors: ") <= 1
    assert REPOS == {}


def test_a_push_without_a_place_for_its_copy_says_so(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=r"cannot be copied to where temporary files go .*TMPDIR") as refusal:
        push(folder)
    assert str(folder) in str(refusal.value)
