"""Deep in a package that a task imports."""


def shout(text: str) -> str:
    return text.upper() + "!"
