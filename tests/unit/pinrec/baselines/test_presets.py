import numpy as np
import pytest

from pinrec.baselines.presets import PUBLISHED
from pinrec.measures import measure
from pinrec.protocols import leave_one_out
from tests.unit.pinrec.baselines.rings import ring


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_makes_a_contender_that_fits_and_ranks(name):
    published = PUBLISHED[name]
    type(published.config).model_validate(published.config.model_dump())
    split = leave_one_out(ring())
    contender = published.contender(split, 0)
    assert contender.epochs == published.config.epochs
    losses = [contender.fit_epoch() for _ in range(3)]
    assert np.isfinite(losses).all()
    assert 0 <= measure(contender, split.test, k=2).mean()["hr@2"] <= 1
