"""What can go wrong with a request to a judge, and what that means for it and for the others."""

import math

# What a second attempt can mend: 408 timeout, 409 conflict, 425 too early, 429 too many requests, and the server's own.
TRANSIENT = frozenset({408, 409, 425, 429})
# What is wrong with every request of the run, so that the rest need not be sent.
HOPELESS = frozenset({401, 402, 403, 404})


class Failure(Exception):
    """A request without a reply.

    transient: worth another attempt. hopeless: so are all the others. refused: for what is in it, for good.
    """

    def __init__(
        self,
        message: str,
        *,
        transient: bool = False,
        hopeless: bool = False,
        refused: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.transient = transient
        self.hopeless = hopeless
        self.refused = refused
        self.retry_after_s = retry_after_s


def seconds(header: str | None) -> float:
    """Retry-After in seconds; 0 for none, or for a date, which a backoff serves as well."""
    try:
        seconds = float(header or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
