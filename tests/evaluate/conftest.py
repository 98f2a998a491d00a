"""The packages that published scores are computed with, which CI installs before the slow tests."""

import importlib
import sys
import types

import pytest


class _Absent(types.ModuleType):
    """Stands for torchvision, of whose parts none is used, while what imports it is imported."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


@pytest.fixture(scope="session")
def package():
    """`package("torch_fidelity.metric_kid")`, a module of a package that is installed without what it depends on."""

    def find(name):
        parts = ["torchvision", *(f"torchvision.{part}" for part in ("datasets", "transforms", "models"))]
        stand_ins = {part: _Absent(part) for part in [*parts, "torchvision.transforms.functional"]}
        with pytest.MonkeyPatch.context() as patch:
            for part, module in stand_ins.items():
                patch.setitem(sys.modules, part, module)
            try:
                return importlib.import_module(name)
            except ImportError:
                pytest.skip(f"needs pip install --no-deps {name.partition('.')[0].replace('_', '-')}")

    return find
