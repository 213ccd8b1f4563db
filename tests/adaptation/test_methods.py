"""The table of methods and the functions that are bound to it."""

from __future__ import annotations

from lowshot_cli.adaptation.methods import BOUND
from lowshot_cli.config.methods import IMPRINT_METHODS, METHODS, find_method


def test_every_method_that_leaves_the_base_model_as_it_is_has_its_function() -> None:
    assert set(BOUND) == {name for name, method in METHODS.items() if not method.alone}


def test_the_former_name_of_a_method_is_accepted() -> None:
    found = find_method("calibrated")
    assert found is not None
    assert found.name == "teen"
    assert "calibrated" not in IMPRINT_METHODS
