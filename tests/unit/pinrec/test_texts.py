import numpy as np
import pytest

from pinrec.texts import TextGroups, Texts

WORDS = ["", "plain", "ä\u2028\n", "", "日本", "\x00"]


@pytest.mark.parametrize("words", [WORDS, [], [""], ["one"]])
def test_strings_are_those_they_were_made_of(words):
    texts = Texts.of(words)
    again = Texts(texts.utf8, texts.ends)
    assert list(again) == [again[row] for row in range(len(again))] == words
    assert again == words
    assert words == again
    assert again != [*words, "more"]
    assert Texts.of(words) == again


def test_rows_are_those_of_a_list():
    texts = Texts.of(WORDS)
    assert [texts[-1], texts[np.int64(2)]] == [WORDS[-1], WORDS[2]]
    assert texts[1:5:2] == WORDS[1:5:2]
    for row in (len(WORDS), -len(WORDS) - 1):
        with pytest.raises(IndexError):
            texts[row]
    assert texts.index("日本") == 4
    assert "nowhere" not in texts


@pytest.mark.parametrize("groups", [[("x", "y"), (), ("ä",)], [], [()]])
def test_groups_are_those_they_were_made_of(groups):
    made = TextGroups.of(groups)
    again = TextGroups(Texts(made.texts.utf8, made.texts.ends), made.ends)
    assert list(again) == [again[row] for row in range(len(again))] == groups
    assert again == groups
    assert again[:2] == groups[:2]


@pytest.mark.parametrize("ends", [[2, 1, 3], [1, 2], [1, 4], [-1, 3]])
def test_ends_that_do_not_fit_are_refused(ends):
    utf8 = np.frombuffer(b"abc", np.uint8)
    with pytest.raises(ValueError, match="do not fit their bytes"):
        Texts(utf8, np.array(ends, np.int64))
    with pytest.raises(ValueError, match="do not fit their strings"):
        TextGroups(Texts.of("abc"), np.array(ends, np.int64))
