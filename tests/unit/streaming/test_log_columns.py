import pytest

from pinrec.config import Action, ModelConfig, Vocabulary
from pinrec.items import feature_bag
from streaming.log_columns import log_in, read_log_columns
from streaming.logs import LogError

LOG = """user_id,item_id,action,surface,timestamp
b,9,skip,home,3
a,10,click,home,1
a,9,click,search,2
"""
ITEMS = "item_id,title,category,author\n9,a red cup,x|y,ann\n77,not in the log,,\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "interactions.csv").write_text(LOG)
    return tmp_path


def test_events_are_in_the_order_of_time_and_the_catalogue_holds_the_items_that_occur(folder):
    (folder / "items.csv").write_text(ITEMS)
    found = read_log_columns(folder)
    assert found.events.timestamp.tolist() == [1, 2, 3]
    assert found.catalogue.item_ids == ["10", "9"]
    assert found.catalogue.titles == ["", "a red cup"]
    assert found.catalogue.categories == [(), ("x", "y")]
    nothing_known = feature_bag((), ModelConfig())
    assert (found.catalogue.bags == nothing_known).all(1).tolist() == [True, False]
    assert found.catalogue.rows(found.events.item_hash).tolist() == [0, 1, 1]
    assert found.vocabulary.outcomes == ("click",)


def test_a_log_without_items_beside_it_has_items_without_metadata(folder):
    found = read_log_columns(folder / "interactions.csv", config=ModelConfig(bag_size=3))
    assert found.catalogue.item_ids == ["10", "9"]
    assert found.catalogue.bags.shape == (2, 3)
    assert (found.catalogue.bags == feature_bag((), ModelConfig(bag_size=3))).all()


def test_every_action_can_be_taken_as_engaging(folder):
    found = read_log_columns(folder, all_engage=True)
    assert found.vocabulary.outcomes == ("click", "skip")
    assert found.vocabulary.engaging == {0, 1}
    assert found.events.engaged(found.vocabulary).all()


def test_a_declared_vocabulary_holds_and_what_it_lacks_is_told(folder):
    declared = Vocabulary(actions=(Action(name="skip"), Action(name="click")), surfaces=("search", "home"))
    assert read_log_columns(folder, vocabulary=declared).events.action.tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="action: 'skip' is not declared; declared are click"):
        read_log_columns(folder, vocabulary=Vocabulary(actions=(Action(name="click"),), surfaces=("search", "home")))


def test_queries_are_no_items(tmp_path):
    (tmp_path / "interactions.csv").write_text(
        "user_id,item_id,action,surface,timestamp,item_type,query\n"
        "a,,search,search,1,query,red cup\na,5,click,search,2,item,\n"
    )
    found = read_log_columns(tmp_path)
    assert found.catalogue.item_ids == ["5"]
    assert found.events.queries == ["red cup"]


def test_a_folder_without_a_log_is_told(tmp_path):
    with pytest.raises(LogError, match=r"holds no log; name it interactions\.csv\.gz"):
        log_in(tmp_path)


def test_columns_that_are_called_otherwise_are_mapped(tmp_path):
    (tmp_path / "interactions.csv").write_text(LOG.replace("user_id", "who"))
    assert len(read_log_columns(tmp_path, columns={"who": "user_id"}).events) == 3
