"""Who asks, and what they may do: keys, front ends and background rules, as they are in force now."""

import logging

import anyio

from gateway import from_settings
from gateway.api.base import InferenceRequest
from gateway.config.settings import Settings
from gateway.identity.background import BackgroundRules
from gateway.identity.callers import Caller, Callers, hashed
from gateway.identity.keys import KeysError
from gateway.identity.missing_users import HINT, MissingUserDetector
from gateway.storage.keys_file import KeysFile

logger = logging.getLogger("fairlane")

# How often it is seen whether the keys file has changed: one `stat` of a local file.
KEYS_POLL = 1.0


class Access:
    def __init__(self, settings: Settings) -> None:
        """Raises KeysError, OSError."""
        self._missing_users = MissingUserDetector()
        self._use(settings, read_keys(settings))

    def reconfigure(self, settings: Settings, keys_file: KeysFile) -> None:
        """`keys_file` has been read: what could fail has been done."""
        self._use(settings, keys_file)

    def identify(self, address: str | None, headers: dict[bytes, bytes]) -> Caller:
        """Raises UnknownKey."""
        return self._callers.identify(address, headers)

    def is_background(self, caller: Caller, request: InferenceRequest, headers: dict[bytes, bytes]) -> bool:
        """Whether the request is served last."""
        return self._background.matches(caller, request, headers)

    def check_user(self, caller: Caller, request: InferenceRequest) -> None:
        """Fairness between users needs to know who they are: say so where a front end seems not to tell."""
        named = caller.user(request.user) is not None
        if caller.rights.front_end and self._missing_users.observe(caller.name, named):
            logger.warning(HINT, hashed(caller.name), ", ".join(self._user_headers))

    async def watch_keys(self) -> None:
        """A change to the keys file is in force within a second; one that cannot be used changes nothing."""
        while True:
            await anyio.sleep(KEYS_POLL)
            file = self._keys_file
            try:
                if file.refresh():
                    self._use(self._settings, file)
                    logger.info("%s: %d keys are in force", file.path, len(file.keys))
            except (KeysError, OSError) as error:
                logger.error("the keys stay as they were: %s", error)

    def _use(self, settings: Settings, keys_file: KeysFile) -> None:
        self._settings = settings
        self._keys_file = keys_file
        self._user_headers = settings.user_headers
        self._background: BackgroundRules = from_settings.background_rules(settings)
        self._callers = Callers(
            [*from_settings.api_keys(settings), *keys_file.keys],
            settings.front_end_networks,
            settings.user_headers,
            # An empty keys file keeps everybody out, and lets nobody in.
            closed=keys_file.path is not None,
        )


def read_keys(settings: Settings) -> KeysFile:
    """Raises KeysError, OSError."""
    file = KeysFile(settings.keys_file)
    file.refresh()
    return file
