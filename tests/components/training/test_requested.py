import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.training.boosted_trees import BoostingParameters
from modelyard.components.training.requested import override, positive_weight


def test_a_dictionary_of_floats_from_kfp_sets_whole_numbers():
    chosen, rest = override(BoostingParameters(), {"rounds": 7.0, "learning_rate": 1.0, "max_bin": 64.0, "gamma": 0.5})
    assert (chosen.rounds, type(chosen.rounds), chosen.learning_rate) == (7, int, 1.0)
    assert rest == {"max_bin": 64, "gamma": 0.5}
    assert type(rest["max_bin"]) is int


def test_a_number_is_taken_as_imbalance():
    assert override(BoostingParameters(), {"imbalance": 12.0})[0].imbalance == "12"


@pytest.mark.parametrize("more", [{"rounds": 7.5}, {"rounds": "7"}, {"rounds": True}, {"seed": None}])
def test_a_value_of_another_type_is_refused(more):
    with pytest.raises(InvalidInput, match="parameters"):
        override(BoostingParameters(), more)


@pytest.mark.parametrize(("imbalance", "weight"), [("auto", 1), ("none", 1), ("balanced", 9), ("2.5", 2.5)])
def test_imbalance_is_the_weight_of_a_positive_row(imbalance, weight):
    assert positive_weight(imbalance, rows=100, positives=10) == pytest.approx(weight)


@pytest.mark.parametrize("imbalance", ["", "often", "0", "-1", "nan", "inf"])
def test_an_imbalance_without_meaning_is_refused(imbalance):
    with pytest.raises(InvalidInput, match="imbalance"):
        positive_weight(imbalance, rows=100, positives=10)
