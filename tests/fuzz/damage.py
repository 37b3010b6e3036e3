"""Ways to damage a file: bytes at random, values in JSON, fields of the tables of a .tflite file."""

import copy
import json

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_lowbit.sealed import seal, unseal
from tests.support import bombs

NUMBERS = (-1, 0, 1, 2, 255, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308)
HOSTILE = (*NUMBERS, None, True, False, "", "x", "\ud800", [], {}, [[]])


def bytes_at_random(content, random):
    """One to four of: bits flipped, bytes set, a piece cut off, out, doubled, moved, filled or put in."""
    content = bytearray(content)
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(0, max(1, len(content))))
        size = int(min(2 ** random.integers(0, 9), len(content) - at))
        kind = random.integers(0, 9)
        if kind <= 2 and content:
            content[at] ^= 1 << int(random.integers(0, 8))
        elif kind == 3 and content:
            content[at] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 4:
            del content[at if random.integers(0, 2) else len(content) - size :]
        elif kind == 5:
            del content[at : at + size]
        elif kind == 6:
            content[at:at] = content[at : at + size]
        elif kind == 7:
            other = int(random.integers(0, max(1, len(content))))
            content[other : other + size] = content[at : at + size]
        else:
            content[at : at + size] = random.integers(0, 256, size, np.uint8).tobytes()
    return bytes(content)


def _places(value, way=()):
    yield way
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*way, key))


def _other(value, values, random):
    """A value in the place of another: hostile, a neighbour, or one that stands elsewhere in the same description."""
    kind = random.integers(0, 6)
    if kind <= 2 and type(value) in (int, float):
        return (
            value + int(random.choice([-1, 1, 100]))
            if type(value) is int
            else value * float(random.choice([-1, 2, 1e30]))
        )
    if kind <= 3:
        return copy.deepcopy(values[random.integers(0, len(values))])
    return copy.deepcopy(HOSTILE[random.integers(0, len(HOSTILE))])


def json_at_random(value, random):
    """JSON with one or two values changed, left out, doubled or added."""
    value = copy.deepcopy(value)
    for _ in range(random.integers(1, 3)):
        ways = list(_places(value))
        way = ways[random.integers(0, len(ways))]
        if not way:
            continue
        values = []
        holder = value
        for step in way[:-1]:
            holder = holder[step]
        for other in ways:
            found = value
            for step in other:
                found = found[step]
            values.append(found)
        key, kind = way[-1], random.integers(0, 8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == 1:
            holder["more"] = copy.deepcopy(holder[key])
        else:
            holder[key] = _other(holder[key], values, random)
    return value


def sealed_at_random(kind, content, random):
    """A sealed file whose description is another, or an array of it, with the digest right."""
    about, arrays = unseal(kind, content)
    if arrays and random.integers(0, 4) == 0:
        name = sorted(arrays)[random.integers(0, len(arrays))]
        array = arrays.pop(name)
        flat = array.reshape(-1)
        changed = (flat[:0], array.astype(np.float64), flat, array[None], np.frombuffer(array.tobytes(), np.uint8))
        if choice := int(random.integers(0, len(changed) + 1)):
            arrays[name] = np.ascontiguousarray(changed[choice - 1])
    else:
        about = json_at_random(about, random)
    try:
        return seal(kind, about, arrays)
    except ValueError:  # numbers that JSON does not have: as text, which a hostile file can hold
        return seal(kind, json.loads(json.dumps(about).replace("Infinity", "1").replace("NaN", "0")), arrays)


def tables_at_random(content, random):
    """The tables of a .tflite file with one or two fields changed; the same bytes where they cannot be packed."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    try:
        for _ in range(random.integers(1, 3)):
            _change_field(model, random)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())
    except Exception:
        return content


def metadata_at_random(content, random):
    """A .tflite file whose TFLite metadata are damaged or share their tables, or which is nothing but shared tables."""
    kind, count = random.integers(0, 3), int(2 ** random.integers(0, 12))
    if kind == 0:
        return bombs.MODELS[random.integers(0, len(bombs.MODELS))](count)
    bomb = bombs.METADATA[random.integers(0, len(bombs.METADATA))]
    return bombs.with_metadata(content, lambda entry: bomb(count) if kind == 1 else bytes_at_random(entry, random))


def _fields(table):
    if isinstance(table, list):
        for entry in table:
            yield from _fields(entry)
    elif hasattr(table, "__dict__"):
        for name, value in vars(table).items():
            yield table, name
            yield from _fields(value)


def _change_field(model, random):
    fields = list(_fields(model))
    table, name = fields[random.integers(0, len(fields))]
    value = getattr(table, name)
    if random.integers(0, 6) == 0:
        setattr(table, name, None)
    elif isinstance(value, np.ndarray) and value.size:
        value = value.copy()
        value.flat[random.integers(0, value.size)] = random.choice([0, 1, 2, 3, 5, 127])
        setattr(table, name, value[: random.integers(0, value.size)] if random.integers(0, 4) == 0 else value)
    elif isinstance(value, bool):
        setattr(table, name, not value)
    elif isinstance(value, int):
        setattr(table, name, int(random.choice([value - 1, value + 1, 0, -1, 100, 2**31 - 1])))
    elif isinstance(value, bytes):
        setattr(table, name, value[1:] + b"x")
    elif isinstance(value, list) and value:
        setattr(table, name, value[:-1] if random.integers(0, 2) else [*value, value[random.integers(0, len(value))]])
