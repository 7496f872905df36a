"""Every test of the atlas sees the shipped catalogue, and no file of the person who runs it."""

import pytest


@pytest.fixture(autouse=True)
def no_models_of_the_user(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
