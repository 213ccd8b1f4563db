"""What the schema says of settings, as the help shows it."""

from __future__ import annotations

from lowshot_cli.config.methods import IMPRINT_METHODS, METHODS
from lowshot_cli.config.schema import ImprintConfig, SweepConfig


def test_the_help_names_every_method_and_those_without_a_bias() -> None:
    one, many = ImprintConfig.model_fields["method"], SweepConfig.model_fields["methods"]
    assert all(name in str(one.description) for name in IMPRINT_METHODS)
    assert all(name in f"{one.description} {many.description}" for name in METHODS)
    extra = SweepConfig.model_fields["max_forgetting"].json_schema_extra
    assert [name for name in METHODS if name in str(extra)] == ["imprint", "random"]
