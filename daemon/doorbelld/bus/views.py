# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What an object on the bus is: a table of methods and one of properties, checked against the XML at import.

A `View` subclass names its interface and marks its functions with `method` and `prop`. What the XML declares and the
class has not, or the other way round, is an ImportError: the two can't drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from .authority import Action
from .interfaces import Interface, load
from .library import Variant

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Call:
    """A method that can be called: ``function(view, *arguments)``, or with the caller first if ``wants_caller``.

    It returns the value of its out argument (None if there is none; an `Fd`, handed on, for type h), or a coroutine
    that does.
    """

    function: Callable[..., Any]
    takes: str
    returns: str
    action: Action
    wants_caller: bool


def method(name: str, action: Action, *, wants_caller: bool = False) -> Callable[[F], F]:
    """Mark a function as the D-Bus method *name*, for callers who may do *action*."""

    def mark(function: F) -> F:
        function.__dict__["dbus_method"] = (name, action, wants_caller)
        return function

    return mark


def prop(name: str) -> Callable[[F], F]:
    """Mark a function as the getter of the D-Bus property *name*."""

    def mark(function: F) -> F:
        function.__dict__["dbus_property"] = name
        return function

    return mark


class View:
    """One interface of one object."""

    interface: ClassVar[Interface]
    calls: ClassVar[dict[str, Call]]
    getters: ClassVar[dict[str, Callable[[Any], Any]]]
    _constant: dict[str, Any] | None = None

    def __init_subclass__(cls, interface: str) -> None:
        """Build the tables of a subclass."""
        cls.interface = load(interface)
        cls.calls, cls.getters = {}, {}
        for function in (own for base in reversed(cls.__mro__) for own in vars(base).values()):
            marks = getattr(function, "__dict__", {})
            if "dbus_method" in marks:
                name, action, wants_caller = marks["dbus_method"]
                declared = cls.interface.methods[name]
                cls.calls[name] = Call(function, declared.takes, declared.returns, action, wants_caller)
            elif "dbus_property" in marks:
                cls.getters[marks["dbus_property"]] = function
        for kind, declared_names, written in (
            ("methods", cls.interface.methods.keys(), cls.calls.keys()),
            ("properties", cls.interface.properties.keys(), cls.getters.keys()),
        ):
            if declared_names != written:
                raise ImportError(
                    f"{interface}: {kind} {set(declared_names) ^ set(written)} are not in both XML and code"
                )

    def get(self, name: str) -> Any:
        """Read one property, as a variant."""
        return Variant(self.interface.properties[name].type, self.getters[name](self))

    def changed(self, names: Collection[str]) -> list[Any]:
        """Give what PropertiesChanged says of the properties *names*: new values, and which are to be read anew.

        Those that don't tell of their changes are left out.
        """
        declared = [(name, item.emits) for name, item in self.interface.properties.items() if name in names]
        return [
            {name: self.get(name) for name, emits in declared if emits == "true"},
            [name for name, emits in declared if emits == "invalidates"],
        ]

    def get_all(self) -> dict[str, Any]:
        """Read all properties; those that never change are made once."""
        if self._constant is None:
            self._constant = {n: self.get(n) for n, p in self.interface.properties.items() if p.emits == "const"}
        constant = self._constant
        return {name: constant[name] if name in constant else self.get(name) for name in self.getters}
