"""Items: readable, distinct, and recognisable by their content."""

import numpy as np

from streaming.simulator import Town, TownConfig
from streaming.simulator.words import COMBINATIONS, TOPICS, wording

OPENS_AT = 1_770_000_000.0


def test_every_topic_has_a_thousand_distinct_titles() -> None:
    for topic in range(len(TOPICS)):
        titles = {wording(topic, combination).title for combination in range(COMBINATIONS)}
        assert len(titles) == COMBINATIONS == 1_000
        assert all(title[0] == title[0].upper() and "{" not in title for title in titles)


def test_a_catalogue_repeats_no_title_and_holds_every_topic_and_kind(town: Town, town_config: TownConfig) -> None:
    items = town.items()
    assert len(items) == town_config.items
    assert len({item.title for item in items}) == len(items)
    assert len({item.categories for item in items}) == town_config.topics * 5
    assert all(item.created_at < OPENS_AT for item in items)


def test_embeddings_are_unit_length_and_lie_near_their_topic(town: Town, town_config: TownConfig) -> None:
    items = town.items()
    vectors = np.array([item.embedding for item in items])
    assert vectors.shape == (town_config.items, town_config.content_width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    topics = np.array([item.categories[0] for item in items])
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -1.0)
    assert np.mean(topics[cosine.argmax(axis=1)] == topics) > 0.9
    same = cosine[topics[:, None] == topics[None, :]]
    assert same.max() < 0.999, "noise tells items of one topic and kind apart"


def test_a_town_started_later_knows_the_items_of_an_earlier_run(town: Town, town_config: TownConfig) -> None:
    message = next(m for m in town.live(20).tick(OPENS_AT + 120) if hasattr(m, "embedding"))
    later = Town(town_config, OPENS_AT + 3_600)
    assert later.title(message.item_id) == message.title
    assert later.true_reward(later.user_ids[0], [message.item_id], "click", OPENS_AT + 3_600)[0] > 0
    for unknown in ("item-99999999999", "item-1", "", "x"):
        assert later.title(unknown) == ""
        assert later.categories(unknown) == ()
