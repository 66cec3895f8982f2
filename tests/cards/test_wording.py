from rst_hub.cards.wording import Verbatim, and_last, budget, code, escaped, fenced, human, look, or_unknown, plain


def test_no_text_is_markdown_or_html():
    evil = "<script>`x`|*b*[l](javascript:x)$y$\n# h\u202e"
    text = escaped(evil)
    assert "\n" not in text
    assert "<" not in text
    for special in "`*[]|$#":
        assert text.count(special) == text.count(f"\\{special}") > 0
    assert escaped(Verbatim("**kept**")) == "**kept**"
    assert escaped("1. item") == "1\\. item"
    assert escaped("- item") == "\\- item"
    assert code("a|b`c") == escaped("a|b`c")
    assert code("plain") == "`plain`"


def test_a_fence_is_longer_than_any_in_it():
    block = fenced(["a", "````", "b"])
    fence = block.split("\n", 1)[0]
    assert fence == "`````"
    assert block.endswith(f"\n{fence}")
    assert fenced(["x"], "python").startswith("```python\n")


def test_words_for_a_reader():
    assert plain("a\x1b[2J\tb\nc") == "a [2J b c"
    assert len(plain("x" * 1000)) == 300
    assert [human(n) for n in (1, 999, 327_800, 19_734_072, 4e9)] == [
        "1 bytes",
        "999 bytes",
        "327.8 KB",
        "19.7 MB",
        "4.00 GB",
    ]
    assert budget("Linf", 8.0) == "Linf, eps 8/255"
    assert budget("L2", None) == "L2, no budget"
    assert and_last(["a", "b", "c"]) == "a, b and c"
    assert and_last(["a"]) == "a"
    assert look({"a": {"b": 1}}, "a", "b") == 1
    assert look({"a": 5}, "a", "b") is None
    assert or_unknown(None) == or_unknown("") == "not recorded"
    assert or_unknown(0.25) == "0.25"
