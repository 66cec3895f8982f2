import traceback

import pytest

from rst_hub import errors
from rst_hub.errors import HubError, RstHubError, cause, foreign, nearest


def test_every_kind_is_an_rst_hub_error():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 7
    assert all(issubclass(kind, RstHubError) for kind in kinds)


def test_nearest_names_what_is_near_or_what_is_known():
    names = ["resnet18", "resnet50", "vit_tiny"]
    assert nearest("resnet81", names) == "Did you mean resnet18 or resnet50?"
    assert nearest("zzz", names) == "Known: resnet18, resnet50, vit_tiny."
    assert nearest("zzz", [f"name{i}" for i in range(99)]) == "No known name is near it."


def test_a_foreign_text_comes_without_a_token_on_one_line():
    texts = {
        "Illegal header value b'Bearer hf_x\\n'": "Illegal header value b'(token)'",
        "authorization: bearer secret-1.2/3=, next": "authorization: (token), next",
        "the token hf_AbC123 is wrong\nsee there": "the token (token) is wrong see there",
        "https://x/?token=hf_abc&y=1": "https://x/?token=(token)&y=1",
        "hf_hub_download() needs hf_xet, a Bearer token": "hf_hub_download() needs hf_xet, a Bearer token",
        "a \x1b[2J and \udcff": "a ?[2J and ?",
    }
    assert {text: foreign(ValueError(text)) for text in texts} == texts
    assert len(foreign(ValueError("x" * 999))) == 500
    assert foreign(ValueError("y" * 490 + " hf_AbC123456789"), 499).endswith(" (token)")


@pytest.mark.parametrize("how", ["plain", "from", "while"])
def test_an_error_is_chained_unless_a_traceback_would_show_a_token(how):
    def fail(text):
        try:
            raise ValueError(text)
        except ValueError as error:
            if how == "from":
                raise KeyError("middle") from error
            if how == "while":
                raise KeyError("middle")  # noqa: B904
            raise

    def ours(text):
        try:
            fail(text)
        except (ValueError, KeyError) as error:
            raise HubError(foreign(error)) from cause(error)

    for text, is_shown in (("Bearer hf_qqq", False), ("no secret", True)):
        with pytest.raises(HubError) as refusal:
            ours(text)
        printed = "".join(traceback.format_exception(refusal.value))
        assert "qqq" not in printed
        assert ("no secret" in printed) is is_shown
