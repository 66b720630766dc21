"""PromQL as far as the tests read it: which series and which labels an expression names."""

import re

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABEL_LIST = re.compile(r"\b(by|on|without|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_MATCHERS = re.compile(r"\{([^{}]*)\}")
_DURATION = re.compile(r"\[[^\]]*\]")
_OFFSET = re.compile(r"\boffset\s+\S+")
_NAME = re.compile(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()")
_WORDS = frozenset(("and", "or", "unless", "bool", "by", "on", "inf", "nan", "offset"))


def series(expression: str) -> set[str]:
    """The names of all series in an expression."""
    bare = _STRING.sub('""', expression)
    for pattern in (_LABEL_LIST, _MATCHERS, _DURATION, _OFFSET):
        bare = pattern.sub(" ", bare)
    return {name for name in _NAME.findall(bare) if name.lower() not in _WORDS}


def grouping(expression: str) -> set[str]:
    """The labels that an expression groups or matches by."""
    lists = (labels for _, labels in _LABEL_LIST.findall(_STRING.sub('""', expression)))
    return {label.strip() for labels in lists for label in labels.split(",") if label.strip()}


def matched(expression: str) -> set[str]:
    """The labels whose values an expression chooses by."""
    bare = _STRING.sub('""', expression)
    return {label for matchers in _MATCHERS.findall(bare) for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)}
