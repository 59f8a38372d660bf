from itertools import pairwise

import numpy as np
import pytest
import torch

from pinrec.baselines.semantic_ids import SemanticIdConfig, SemanticIds, residual_codes, semantic_ids
from pinrec.config import ModelConfig
from pinrec.items import Catalogue, Item

SMALL = SemanticIdConfig(levels=2, codes=4, width=8)
THEMES = ("red nail lacquer", "dry hair shampoo", "soft lip balm", "wool winter socks")


def catalogue(*items):
    return Catalogue.of([Item(f"i{n}", *item) for n, item in enumerate(items)], ModelConfig())


def themed(each=6):
    """Items of four themes in turn; beside the theme's words each has one of three words that cross the themes."""
    return catalogue(*((f"{THEMES[n % 4]} {('mini', 'maxi', 'plus')[n % 3]}", (f"c{n % 4}",)) for n in range(4 * each)))


def company(groups, seed=0, users=60, length=8):
    rng = np.random.default_rng(seed)
    return [rng.choice(groups[user % len(groups)], length) for user in range(users)]


@pytest.mark.parametrize("seed", range(5))
def test_only_items_of_one_theme_share_a_first_code(seed):
    # Of each theme there are three kinds of items: eight codes for twelve kinds.
    code_NV = semantic_ids(themed(), [], SMALL.model_copy(update={"codes": 8}), seed).code_NV
    themes_of = [set((np.flatnonzero(code_NV[:, 0] == code) % 4).tolist()) for code in range(8)]
    assert [len(themes) for themes in themes_of] == [1] * 8


def test_items_in_the_same_histories_share_the_first_code_where_there_are_no_features():
    groups = [np.arange(0, 10), np.arange(10, 20)]
    ids = semantic_ids(catalogue(*[()] * 20), company(groups), SMALL.model_copy(update={"codes": 2, "width": 2}))
    assert len(set(ids.code_NV[:10, 0].tolist())) == len(set(ids.code_NV[10:, 0].tolist())) == 1
    assert ids.code_NV[0, 0] != ids.code_NV[10, 0]


def test_histories_count_only_as_much_as_the_configuration_says():
    items, histories = themed(), company([np.arange(0, 12), np.arange(12, 24)])
    content_only = SMALL.model_copy(update={"cooccurrence": 0.0})
    np.testing.assert_array_equal(
        semantic_ids(items, histories, content_only).code_NV, semantic_ids(items, [], content_only).code_NV
    )
    mostly_company = SMALL.model_copy(update={"cooccurrence": 10.0, "codes": 2})
    first = semantic_ids(items, histories, mostly_company).code_NV[:, 0]
    assert len(set(first[:12].tolist())) == len(set(first[12:].tolist())) == 1
    assert first[0] != first[12]


def test_namesakes_differ_in_their_last_code_only():
    ids = semantic_ids(catalogue(*[("red lacquer",)] * 5, *[("hair balm",)] * 3), [], SMALL)
    np.testing.assert_array_equal(ids.code_NV[:, -1], [0, 1, 2, 3, 4, 0, 1, 2])
    assert len(np.unique(ids.code_NV[:5, :-1], axis=0)) == len(np.unique(ids.code_NV[5:, :-1], axis=0)) == 1
    assert ids.sizes[-1] == 5


def test_every_id_is_distinct_and_the_same_arguments_give_the_same():
    items, histories = themed(), company([np.arange(24)])
    first, again = (semantic_ids(items, histories, SMALL, seed=3).code_NV for _ in range(2))
    assert len(np.unique(first, axis=0)) == 24
    np.testing.assert_array_equal(first, again)


def test_a_later_level_codes_what_the_levels_before_left_over():
    x_ND = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    left = [float(x_ND.square().sum())]
    for levels in (1, 2, 3):
        code_NV = residual_codes(x_ND, SMALL.model_copy(update={"levels": levels}))
        rest_ND = x_ND.clone()
        for level in range(levels):
            # A level's centres are the means of what it was given.
            for code in range(SMALL.codes):
                rest_ND[code_NV[:, level] == code] -= rest_ND[code_NV[:, level] == code].mean(0)
        left.append(float(rest_ND.square().sum()))
    assert all(after < 0.75 * before for before, after in pairwise(left))


def test_features_that_no_two_items_share_and_no_company_are_an_error():
    with pytest.raises(ValueError, match="no two items share a feature"):
        semantic_ids(catalogue(("one",), ("two",), ("three",)), [], SMALL)


def test_the_trie_leads_every_id_to_its_item_and_nothing_else_anywhere():
    code_NV = np.array([[1, 0, 0], [0, 2, 0], [1, 0, 1], [0, 1, 0], [2, 2, 0]])
    ids = SemanticIds(code_NV)
    assert ids.sizes == (3, 3, 2)
    found = {}
    for codes in np.ndindex(*ids.sizes):
        node = 0
        for level, code in zip(ids.trie, codes, strict=True):
            (child,) = np.flatnonzero(level.code_PC[node] == code) if code in level.code_PC[node] else (None,)
            if child is None:
                break
            node = level.first_P[node] + child
        else:
            found[codes] = ids.row[node]
    assert found == {tuple(codes): row for row, codes in enumerate(code_NV.tolist())}
