"""The command line as it stands: every command's parser by its name."""

from mdpo.commands import program


def parsers(parser=None, name="") -> dict:
    """Every command's parser by its name, such as "data check"."""
    parser = parser or program()
    below = [action for action in parser._actions if hasattr(action, "choices") and isinstance(action.choices, dict)]
    found = {name: parser} if name else {}
    for action in below:
        if action.option_strings:  # an option with a table of choices is no command
            continue
        for choice, inner in action.choices.items():
            found |= parsers(inner, f"{name} {choice}".strip())
    return found
