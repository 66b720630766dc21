"""Any message of a protobuf contract, made from its descriptor: a field that is new is fuzzed by itself.

Two kinds. A *wild* message has any of its fields set to anything. A *near* one follows `likely`: most of what it says
is what a good caller could say, so that a sequence of such messages gets deep into the protocol; rarely a field has any
other value, and fields that `likely` does not know are mostly left alone.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.fuzz.choices import Choices

M = TypeVar("M", bound=Message)
Maker = Callable[[Choices], Any]

MAX_DEPTH = 6
"""Messages in messages; the contract has five."""

MAX_ITEMS = 3
"""Entries of a repeated field of a wild message."""

MAX_BYTES = 16
"""Of free text, and of fields of bytes."""

PIECES = (
    "x",
    "Mix flour and water. ",
    "It's 12 o'clock.\r\n\r\n",
    "\x00\x1f\x7f",
    "\ufeff\ufffd\uffff",
    "<|im_start|>user\n",
    "<|im_end|>",
    "<think>\n\n</think>\n\n",
    "</think>",
    "<|endoftext|>",
    "{{ 7 * 7 }}{% raw %}",
    "e\u0301\u0301",
    "\u0301",
    "\u1112\u1161\u11ab",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\u202eאבג",
    "你好,世界。",
    "\ue000\uf8ff",
    "\U0010ffff",
)
BLANKS = (" ", "\n\t", "\u3000\u2029")
"""What tokenizers and templates treat specially; blanks alone are no message."""

_INTEGER_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
}
_FLOATS = (0.0, 1.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45)
_UNKNOWN_NUMBERS = (-1, -(2**31), 2**31 - 1)


def text(choices: Choices, max_bytes: int) -> str:
    """Mostly of pieces; seldom anything, or at a limit of so many bytes of UTF-8."""
    if not choices.seldom():
        return choices.pick(PIECES) + "".join(choices.pick(PIECES + BLANKS) for _ in range(choices.below(4)))
    limits = ("x" * max_bytes, "x" * (max_bytes + 1), "ü" * (max_bytes // 2), "ü" * (max_bytes // 2 + 1))
    free = choices.take(choices.below(MAX_BYTES)).decode(errors="ignore")
    return choices.pick((*[f"x{free}"] * 4, free, choices.pick(BLANKS), *limits))


def integer(choices: Choices, num_bits: int, *, signed: bool) -> int:
    """A small one, any, or one at an end of the range."""
    sign_bit = 1 << (num_bits - 1)
    lowest, highest = (-sign_bit, sign_bit - 1) if signed else (0, 2 * sign_bit - 1)
    match choices.below(3):
        case 0:
            return choices.below(8)
        case 1:
            return choices.pick((lowest, highest, highest - 1))
    return choices.between(lowest, highest)


def enum_number(choices: Choices, enum: EnumDescriptor) -> int:
    """Mostly one that the contract lists."""
    listed: list[int] = [value.number for value in enum.values]
    unlisted = [max(listed) + 1, *_UNKNOWN_NUMBERS]
    return choices.pick(unlisted if choices.seldom() else listed)


def floating(choices: Choices) -> float:
    """A special one, or any of 32 bits."""
    if choices.flip():
        return choices.pick(_FLOATS)
    value: float = struct.unpack("<f", choices.take(4))[0]
    return value


class MessageMaker:
    """Makes messages of one contract. Stateless.

    `likely` names fields, and oneofs, as `StreamOpen.model`. What it says of a field gives its value (of a repeated
    field: all its values) or None to leave it unset; of a oneof, the name of one of its fields.
    """

    def __init__(self, likely: Mapping[str, Maker], max_text_bytes: int) -> None:
        self._likely = likely
        self._max_text_bytes = max_text_bytes

    def near(self, choices: Choices, kind: type[M]) -> M:
        """A message that is mostly good."""
        return kind(**self._near_values(choices, _descriptor(kind)))

    def wild(self, choices: Choices, kind: type[M]) -> M:
        """A message of any content."""
        return kind(**self._wild_values(choices, _descriptor(kind), 0))

    def _near_values(self, choices: Choices, descriptor: Descriptor) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for oneof in descriptor.oneofs:
            if len(oneof.fields) > 1:
                names = [field.name for field in oneof.fields]
                likely = self._likely.get(f"{descriptor.name}.{oneof.name}")
                name = likely(choices) if likely else choices.pick(names)
                values[name] = self._near_value(choices, descriptor.fields_by_name[name])
        for field in descriptor.fields:
            is_alone = field.containing_oneof is None or len(field.containing_oneof.fields) == 1
            if is_alone and (_name(field) in self._likely or choices.seldom()):
                values[field.name] = self._near_value(choices, field)
        return {name: value for name, value in values.items() if value is not None}

    def _near_value(self, choices: Choices, field: FieldDescriptor) -> Any:  # noqa: ANN401 of any field
        likely = self._likely.get(_name(field))
        if likely is not None and not choices.rarely():
            return likely(choices)
        if field.message_type is not None and not field.is_repeated:
            return GetMessageClass(field.message_type)(**self._near_values(choices, field.message_type))
        return self._wild_value(choices, field, 0)

    def _wild_values(self, choices: Choices, descriptor: Descriptor, depth: int) -> dict[str, Any]:
        if depth > MAX_DEPTH:
            return {}
        chosen = [field for field in descriptor.fields if field.containing_oneof is None and choices.flip()]
        chosen += filter(None, (choices.pick((None, *oneof.fields)) for oneof in descriptor.oneofs))
        return {field.name: self._wild_value(choices, field, depth + 1) for field in chosen}

    def _wild_value(self, choices: Choices, field: FieldDescriptor, depth: int) -> Any:  # noqa: ANN401 of any field
        likely = self._likely.get(_name(field))
        if likely is not None and choices.flip() and (value := likely(choices)) is not None:
            return value
        if not field.is_repeated:
            return self._one_value(choices, field, depth)
        values = [self._one_value(choices, field, depth) for _ in range(choices.below(MAX_ITEMS + 1))]
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        return {entry.key: entry.value for entry in values} if is_map else values

    def _one_value(self, choices: Choices, field: FieldDescriptor, depth: int) -> Any:  # noqa: ANN401 of any field
        if field.message_type is not None:
            return GetMessageClass(field.message_type)(**self._wild_values(choices, field.message_type, depth))
        if field.enum_type is not None:
            return enum_number(choices, field.enum_type)
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return choices.flip()
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return choices.take(choices.below(MAX_BYTES))
            case FieldDescriptor.CPPTYPE_STRING:
                return text(choices, self._max_text_bytes)
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return floating(choices)
        num_bits, signed = _INTEGER_BITS[field.cpp_type]
        return integer(choices, num_bits, signed=signed)


def _descriptor(kind: type[Message]) -> Descriptor:
    return cast("Descriptor", kind.DESCRIPTOR)


def _name(field: FieldDescriptor) -> str:
    """As `StreamOpen.model`."""
    assert field.containing_type is not None  # messages here have no extensions
    return f"{field.containing_type.name}.{field.name}"
