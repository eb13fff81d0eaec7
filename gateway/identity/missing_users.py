"""Front ends that name no users: all who use one then share a single turn, which is seldom what was meant."""

REQUESTS_BEFORE_HINT = 20

# Of more front ends than this nobody needs to be told at once.
MAX_FRONT_ENDS = 1024

HINT = (
    f"{REQUESTS_BEFORE_HINT} requests in a row of the front end user=%s named no user, so all its users take one turn "
    "together. Open WebUI names them with ENABLE_FORWARD_USER_INFO_HEADERS=True; others by a header of user_headers "
    "(%s), or by `user` in the body. If only one person uses it, all is well."
)


class MissingUserDetector:
    def __init__(self) -> None:
        self._in_a_row: dict[str, int] = {}

    def __len__(self) -> int:
        """Front ends that are remembered."""
        return len(self._in_a_row)

    def observe(self, front_end: str, named: bool) -> bool:
        """A request of a front end, and whether it names a user. True once, when REQUESTS_BEFORE_HINT in a row have
        not, and never again."""
        count = self._in_a_row.get(front_end, 0)
        if count >= REQUESTS_BEFORE_HINT or (not count and len(self._in_a_row) >= MAX_FRONT_ENDS):
            return False
        if named:
            self._in_a_row.pop(front_end, None)
            return False
        self._in_a_row[front_end] = count + 1
        return count + 1 == REQUESTS_BEFORE_HINT
