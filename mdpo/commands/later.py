"""What a command runs, by its name: so that its help and its options need none of what it imports."""

from pkgutil import resolve_name
from typing import Any


class Later:
    """A function by its name, ``module:function``, which is imported when it is called.

    Args:
        name: The function's.
        given: Keyword arguments that it is called with beside those of the call, each by its name likewise.
    """

    def __init__(self, name: str, **given: str) -> None:
        self.name = name
        self.given = given

    def load(self) -> None:
        """Imports the function and what it is given."""
        for name in (self.name, *self.given.values()):
            resolve_name(name)

    def __call__(self, *arguments: Any) -> Any:
        given = {key: resolve_name(name) for key, name in self.given.items()}
        return resolve_name(self.name)(*arguments, **given)
