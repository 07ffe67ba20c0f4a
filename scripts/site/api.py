"""The API reference, made of the signatures and docstrings of the public names."""

from __future__ import annotations

import ast
import enum
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from types import ModuleType

# The modules with public names; an empty list means all exported ones.
_MODULES: Mapping[str, Sequence[str]] = {
    "etcd_actions": (),
    "etcd_actions.errors": (),
    "etcd_actions.server": (),
    "etcd_actions.web": ("Bind", "HttpLimits", "ServerTls"),
    "etcd_actions.executor": (),
    "etcd_actions.pipeline.watching_settings": ("WatchingStatistics",),
    "etcd_actions.embedded.embedded_etcd": ("EmbeddedEtcd", "open_embedded_etcd"),
    "etcd_actions.testing": (),
}
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")
_WIDTH = 88


def page() -> str:
    """The page, in Markdown."""
    parts = [
        "# API reference",
        "Generated from the code. [Public names](api.md) lists what is public; the "
        "[glossary](glossary.md) has the terms.",
    ]
    public = {name: import_module(name) for name in _MODULES}
    names = {name: _MODULES[name] or _public(module) for name, module in public.items()}
    writer = _Writer({each for some in names.values() for each in some})
    for name, module in public.items():
        parts += [f"## {name}", *writer.module(module, names[name])]
    return "\n\n".join(parts) + "\n"


def _public(module: ModuleType) -> Sequence[str]:
    """The exported names of a module; without ``__all__`` the classes that it defines."""
    if exported := getattr(module, "__all__", None):
        return [each for each in exported if not inspect.ismodule(getattr(module, each))]
    return [
        name
        for name, each in vars(module).items()
        if inspect.isclass(each) and each.__module__ == module.__name__ and name[0] != "_"
    ]


class _Writer:
    def __init__(self, known: set[str]) -> None:
        self._known = known
        self._written: set[str] = set()

    def module(self, module: ModuleType, names: Iterable[str]) -> Iterator[str]:
        """The public names of a module; each is written once."""
        for name in sorted(set(names) - {"__version__", "pytest_plugins"}, key=str.lower):
            value = getattr(module, name)
            if name in self._written:
                continue
            self._written.add(name)
            yield f"### {name} {{#{name}}}"
            if inspect.isclass(value):
                yield from self._class(value)
            elif inspect.isfunction(value):
                yield from self._function(name, value)
            else:
                yield _code(f"{name} = {value!r}")

    def _function(self, name: str, function: Callable[..., object]) -> Iterator[str]:
        yield _code(_signature(name, function))
        yield from self._text(function.__doc__)

    def _class(self, cls: type) -> Iterator[str]:
        bases = [each.__name__ for each in cls.__bases__ if each is not object]
        yield _code(f"class {cls.__name__}({', '.join(bases)})" if bases else _head(cls))
        yield from self._text(cls.__doc__ if "__doc__" in vars(cls) else None)
        if issubclass(cls, enum.Enum):
            yield ", ".join(f"`{each.name}`" for each in cls)
        if fields := list(_fields(cls)):
            yield "\n".join(
                f"- `{name}: {annotation}`" + (f": {self._inline(text)}" if text else "")
                for name, annotation, text in fields
            )
        for base in reversed(cls.__mro__):
            if base.__module__.startswith("etcd_actions."):
                yield from self._members(cls, base)

    def _members(self, cls: type, base: type) -> Iterator[str]:
        for name, member in vars(base).items():
            if name.startswith("_") or vars(cls).get(name, member) is not member:
                continue
            function = member.fget if isinstance(member, property) else member
            function = getattr(function, "__func__", function)  # of a class method
            if not inspect.isfunction(function) or not function.__doc__:
                continue
            yield f"#### {cls.__name__}.{name} {{#{cls.__name__}.{name}}}"
            line = _signature(name, function)
            if isinstance(member, property):
                line = line.removeprefix("def ").replace("() -> ", ": ")
            yield _code(line)
            yield from self._text(function.__doc__)

    def _text(self, docstring: str | None) -> Iterator[str]:
        """The paragraphs of a docstring; sections of names and descriptions become lists."""
        head, *sections = _SECTION.split(inspect.cleandoc(docstring or ""))
        if head.strip():
            yield self._inline(_fenced(head.strip()))
        for title, text in zip(sections[::2], sections[1::2], strict=True):
            body = textwrap.dedent(text.strip("\n"))
            if title in ("Returns", "Yields"):
                yield f"**{title}:** {self._inline(' '.join(body.split()))}"
            else:
                yield f"**{title}:**"
                yield "\n".join(f"- {self._inline(item)}" for item in _items(body))

    def _inline(self, text: str) -> str:
        def link(found: re.Match[str]) -> str:
            name = found[1].rpartition(".")[2]
            return f"[`{name}`](#{name})" if name in self._known else f"`{name}`"

        return _ROLE.sub(link, text).replace("``", "`")


def _items(body: str) -> Iterator[str]:
    """Each ``name: text``, with its indented lines, as one line with the name as code."""
    for item in re.split(r"\n(?=\S)", body):
        name, colon, text = " ".join(item.split()).partition(":")
        yield f"`{name}`:{text}" if colon and " " not in name else " ".join(item.split())


def _fenced(text: str) -> str:
    """Make the literal blocks of reStructuredText those of Markdown."""
    block = re.compile(r"::\n\n((?:    .*\n?|\n)+)")
    return block.sub(
        lambda found: f":\n\n```python\n{textwrap.dedent(found[1]).strip()}\n```\n", text
    )


def _head(cls: type) -> str:
    return f"class {cls.__name__}"


def _signature(name: str, function: Callable[..., object]) -> str:
    try:
        signature = inspect.signature(function)
    except ValueError:
        return name
    parameters = [str(each) for each in _slots(signature)]
    returns = signature.return_annotation
    end = "" if returns is inspect.Signature.empty else f" -> {_name(returns)}"
    prefix = "async def" if _is_async(function) else "def"
    line = f"{prefix} {name}({', '.join(parameters)}){end}"
    if len(line) <= _WIDTH:
        return line
    lines = "".join(f"    {each},\n" for each in parameters)
    return f"{prefix} {name}(\n{lines}){end}"


def _slots(signature: inspect.Signature) -> Iterator[str]:
    star = False
    for each in signature.parameters.values():
        if each.name in {"self", "cls"}:
            continue
        if each.kind is each.KEYWORD_ONLY and not star:
            star = True
            yield "*"
        star = star or each.kind is each.VAR_POSITIONAL
        text = str(each) if not isinstance(each.annotation, str) else _parameter(each)
        yield text


def _parameter(each: inspect.Parameter) -> str:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(each.kind.name, "")
    default = "" if each.default is each.empty else f" = {_shown(each.default)}"
    return f"{stars}{each.name}: {each.annotation}{default}"


def _shown(default: object) -> str:
    """A default as one writes it: no object's address."""
    text = repr(default)
    return f"{type(default).__name__}(...)" if " at 0x" in text else text


def _is_async(function: Callable[..., object]) -> bool:
    inner = inspect.unwrap(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inner)


def _name(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "object")


def _fields(cls: type) -> Iterator[tuple[str, str, str]]:
    """The annotated fields of a class, each with the text below it."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError):
        return
    assert isinstance(tree, ast.ClassDef)
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.target.id.startswith("_"):
            continue
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = " ".join(str(below.value.value).split())
        yield node.target.id, ast.unparse(node.annotation), text


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
