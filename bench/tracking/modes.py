"""Whether runs are mirrored, and where to: decided without asking any server."""

from __future__ import annotations

import configparser
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.errors import UserError

ONLINE, OFFLINE, DISABLED = MODES = ("online", "offline", "disabled")
PROJECT = "pruning-bench"
_PUBLIC = "https://api.wandb.ai"
# W&B's older names of its modes
_OLDER = {"dryrun": OFFLINE, "run": ONLINE}
_NO_LOGIN = "no W&B login for {}: run `wandb login`, or set WANDB_API_KEY; `--wandb offline` needs none"


@dataclass(frozen=True)
class Target:
    """The server and project that runs are sent to; ``entity`` is the login's own where it is empty."""

    server: str
    entity: str
    project: str

    @property
    def name(self) -> str:
        """What the notes of what was sent are kept under."""
        return "/".join(part for part in (self.server, self.entity, self.project) if part)


def chosen(asked: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The mode of a reproduction run: as ``asked``, else ``WANDB_MODE``, else online with a login and offline without.

    Raises :class:`UserError` for an unknown ``WANDB_MODE``, and for online without a login.
    """
    given = asked or environment.get("WANDB_MODE") or None
    mode = _OLDER.get(given or "", given)
    if mode is not None and mode not in MODES:
        raise UserError(f"WANDB_MODE={given}: choose one of {', '.join(MODES)}")
    if mode == ONLINE:
        check_login(environment)
    return mode or (ONLINE if logged_in(environment) else OFFLINE)


def check_login(environment: Mapping[str, str] = os.environ) -> None:
    """Raises :class:`UserError` where no login for the server is found."""
    if not logged_in(environment):
        raise UserError(_NO_LOGIN.format(target(environment).server))


def logged_in(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a key or token is set, or the netrc file has an entry for the server; its validity is not asked for."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = environment.get("NETRC")
    home = Path(environment.get("HOME") or Path.home())
    for path in [Path(named)] if named else [home / ".netrc", home / "_netrc"]:
        try:
            if netrc.netrc(path).authenticators(urlsplit(target(environment).server).netloc):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def target(environment: Mapping[str, str] = os.environ) -> Target:
    """Where runs are sent to, by the environment, else by the settings that ``wandb login --host`` leaves."""
    settings = configparser.ConfigParser()
    home = Path(environment.get("HOME") or Path.home())
    folder = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    try:
        settings.read(folder / "settings")
        stored = dict(settings["default"]) if "default" in settings else {}
    except (OSError, UnicodeDecodeError, configparser.Error):
        stored = {}
    server = environment.get("WANDB_BASE_URL") or stored.get("base_url") or _PUBLIC
    entity = environment.get("WANDB_ENTITY") or stored.get("entity") or ""
    return Target(server.rstrip("/"), entity, environment.get("WANDB_PROJECT") or PROJECT)
