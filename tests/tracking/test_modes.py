"""Whether runs are mirrored: the option, the environment, a login; no server is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import UserError
from bench.tracking import modes


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user without a login."""
    return {"HOME": str(tmp_path)}


@pytest.mark.parametrize("mode", modes.MODES)
def test_the_environment_decides_and_the_option_before_it(mode: str, home: dict[str, str]) -> None:
    login = home | {"WANDB_API_KEY": "key"}
    assert modes.chosen(None, login | {"WANDB_MODE": mode}) == mode
    assert modes.chosen(mode, login | {"WANDB_MODE": "disabled"}) == mode


def test_without_either_a_login_decides(home: dict[str, str]) -> None:
    assert modes.chosen(None, home) == "offline"
    assert modes.chosen(None, home | {"WANDB_API_KEY": "key"}) == "online"
    assert modes.chosen(None, home | {"WANDB_MODE": ""}) == "offline"
    (Path(home["HOME"]) / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    assert modes.chosen(None, home) == "online"
    assert modes.chosen(None, home | {"WANDB_BASE_URL": "https://own.example"}) == "offline"


def test_a_server_of_one_s_own_is_found_where_wandb_login_left_it(home: dict[str, str]) -> None:
    folder = Path(home["HOME"]) / ".config" / "wandb"
    folder.mkdir(parents=True)
    (folder / "settings").write_text("[default]\nbase_url = https://own.example/\nentity = team\n")
    (Path(home["HOME"]) / ".netrc").write_text("machine own.example login user password key\n")
    assert modes.chosen(None, home) == "online"
    assert modes.target(home) == modes.Target("https://own.example", "team", modes.PROJECT)
    assert modes.target(home | {"WANDB_BASE_URL": "https://other"}).server == "https://other"


def test_what_cannot_be_is_told_in_one_line(home: dict[str, str]) -> None:
    with pytest.raises(UserError, match="WANDB_MODE=sometimes: choose one of online, offline, disabled"):
        modes.chosen(None, home | {"WANDB_MODE": "sometimes"})
    with pytest.raises(UserError, match=r"no W&B login for https://api\.wandb\.ai: run `wandb login`"):
        modes.chosen("online", home)


def test_a_broken_settings_or_netrc_file_is_no_login(home: dict[str, str]) -> None:
    folder = Path(home["HOME"]) / ".config" / "wandb"
    folder.mkdir(parents=True)
    (folder / "settings").write_text("no section\n")
    (Path(home["HOME"]) / ".netrc").write_text("machine\n")
    assert modes.chosen(None, home) == "offline"
