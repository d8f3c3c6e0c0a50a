"""What pydantic finds wrong with a body, as the one error of ours that names the field."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from app.errors import RelayError, invalid_request

MAX_FAULTS: Final = 1000
"""Beyond it no field is named: pydantic tells all its errors or none, and 3 million of them took 13 s of the loop."""

MAX_PARAM_CHARACTERS: Final = 128
_BRANCH: Final = re.compile(r"str|(list|dict)\[.*", re.DOTALL)
"""How pydantic names, inside a path, the branch of a union that it was trying."""

Unknown = Callable[[list[str]], str]
"""Words for a field that nobody knows, from its path."""


def refusal(error: ValidationError, unknown: Unknown) -> RelayError:
    """400 for what is no JSON, else 422 naming the field."""
    if error.error_count() > MAX_FAULTS:
        return invalid_request(f"the body has {error.error_count()} faults", param="body")
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    first = max(faults, key=lambda fault: len(fault["loc"]))  # of a union's branches the one that got furthest
    loc = [str(part) for part in first["loc"] if not _BRANCH.fullmatch(str(part))]
    param = ".".join(loc)[:MAX_PARAM_CHARACTERS] or "body"
    match first["type"]:
        case "json_invalid":
            words = first["msg"].removeprefix("Invalid JSON: ")
            return invalid_request(f"the body is not JSON: {words}", param=param, status=400)
        case "extra_forbidden":
            return invalid_request(unknown(loc), param=param)
        case "value_error" if not loc:
            return invalid_request(first["msg"].removeprefix("Value error, "), param="message")
        case _:
            words = _lower(first["msg"].removeprefix("Value error, "))
            return invalid_request(f"{param}: {words}", param=param)


def unknown_among(known: Mapping[str, Any], name: str) -> str:
    """Names the nearest known field."""
    name = name[:64]  # looking for what is near takes its time on a name of 9 MB
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"unknown field `{name}`" + (f"; did you mean `{near[0]}`?" if near else "")


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
