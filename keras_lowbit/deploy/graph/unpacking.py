"""Flatbuffers, unpacked no further than their size allows.

The tables of a flatbuffer may share their parts: a small file in which each level lists one table many times unpacks to more
than any memory. So what unpacking will make is counted first, by the schema's own classes, whichever schema that is.
"""

from __future__ import annotations

import functools
from typing import Any

import flatbuffers

#: Bytes that a table or string takes at least, with the offset that leads to it.
_LEAST = 8
#: How often, on average, a sound file may use what it holds once.
_SHARED = 2
#: Unions whose type is not called as the field that holds one.
_UNIONS = {
    "details": "QuantizationDetails",
    "options": "ProcessUnitOptions",
    "arraySegments": "SparseIndexVector",
    "arrayIndices": "SparseIndexVector",
}


def unpack(schema: Any, root: str, content: Any) -> Any:
    """The objects of a flatbuffer. schema: a module that flatc made, its object API included.   root: the first table's class.

    ValueError if it says that it holds more than its bytes can; whatever else is wrong with them raises something.
    """
    return getattr(schema, f"{root}T").InitFromObj(checked(schema, root, content))


def checked(schema: Any, root: str, content: Any) -> Any:
    """The first table, of a flatbuffer that may be unpacked."""
    table = getattr(schema, root).GetRootAs(content)
    _Count(schema, len(content)).add(table)
    return table


class _Count:
    """How much of a budget is left while all is gone through that unpacking makes an object of."""

    def __init__(self, schema: Any, size: int) -> None:
        self.schema, self.size, self.left = schema, size, _SHARED * size

    def add(self, value: Any) -> None:
        """A table or string with all that it leads to; numbers take nothing, vectors of them are not copied."""
        if isinstance(value, bytes):
            self._spend(_LEAST + len(value))
        elif hasattr(value, "_tab"):
            self._spend(_LEAST)
            for name, is_list in fields_of(self.schema, value.__class__):
                if is_list:
                    for place in range(getattr(value, f"{name}Length")()):
                        self.add(getattr(value, name)(place))
                else:
                    found = getattr(value, name)()
                    self.add(self._union(value, name, found) if isinstance(found, flatbuffers.table.Table) else found)

    def _union(self, holder: Any, name: str, table: Any) -> Any:
        """A member of a union as a table of its own class; None for a type that the schema has not, which is not unpacked."""
        member = members_of(self.schema, name).get(getattr(holder, f"{name}Type")())
        if member is not None:
            member = member()
            member.Init(table.Bytes, table.Pos)
        return member

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError(f"{self.size:,} bytes cannot hold the tables that it says it has")


@functools.cache
def fields_of(schema: Any, kind: Any) -> tuple[tuple[str, bool], ...]:
    """The accessor of each field of a table that may hold something to unpack, and whether there are several of it."""
    made = vars(getattr(schema, f"{kind.__name__}T")())
    names = [f"{name[0].upper()}{name[1:]}" for name in made]
    return tuple((name, hasattr(kind, f"{name}Length")) for name in names if not hasattr(kind, f"{name}AsNumpy"))


@functools.cache
def members_of(schema: Any, name: str) -> dict[int, Any]:
    """The classes of the union that a field holds, by their numbers."""
    union = getattr(schema, _UNIONS.get(f"{name[0].lower()}{name[1:]}", name))
    return {number: getattr(schema, kind) for kind, number in vars(union).items() if hasattr(schema, f"{kind}T")}
