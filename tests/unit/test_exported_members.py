"""`import smile`: everything promised is there, documented, and cheap to import."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import smile
from smile import errors, resources


def test_every_exported_name_resolves_once() -> None:
    assert len(set(smile.__all__)) == len(smile.__all__)
    for name in smile.__all__:
        assert getattr(smile, name) is not None
        assert name in dir(smile)


def test_every_exported_class_and_function_is_documented() -> None:
    for name in smile.__all__:
        member = getattr(smile, name)
        if inspect.isclass(member) or inspect.isfunction(member):
            assert member.__doc__, f"smile.{name} has no docstring"
            assert not member.__doc__.startswith(f"{name}("), f"smile.{name}: dataclass default"


def test_every_error_is_exported() -> None:
    tree = {
        name
        for name, member in vars(errors).items()
        if inspect.isclass(member) and issubclass(member, errors.SmileError)
    }
    assert tree <= set(smile.__all__)


def test_every_resource_is_exported() -> None:
    # What storage keeps for the trainer, and what defaults follow from a job's method.
    internal = {"TrainingRecord", "FULL_LEARNING_RATE", "defaults_of"}
    assert set(resources.__all__) - internal <= set(smile.__all__)


def test_the_public_methods_of_both_clients_are_the_same() -> None:
    def methods(cls: type) -> dict[str, list[str]]:
        found = inspect.getmembers(cls, inspect.isfunction)
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in found
            if not name.startswith("_")
        }

    assert methods(smile.AsyncClient) == methods(smile.Client)
    assert "infer" in methods(smile.Client)


def test_importing_stays_cheap() -> None:
    code = (
        "import sys, smile, smile.errors, smile.names, smile.resources;"
        "assert not {'grpc', 'google.protobuf', 'pydantic'} & set(sys.modules), 'import smile';"
        "smile.Client, smile.AsyncClient;"
        "import smile.cli.app; smile.cli.app.build();"
        "heavy = {'torch', 'transformers', 'numpy', 'redis', 'obstore'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        smile.Nonsense  # type: ignore[attr-defined]  # noqa: B018
