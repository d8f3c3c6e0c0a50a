"""How much work a JSON document is. What it takes to read one is hardly its bytes, it is its values: some 3 µs each.

Ten MiB in one string are read in a moment; ten MiB of `{},{},{}…` held the loop for 15 s (measured).
"""

import re
from itertools import islice
from typing import Final

MAX_VALUES: Final = 200_000
"""Of a request or of an event: 30,000 messages, or half a second. What a string holds does not count."""

_COUNTED: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,\[{]|[0-9]{16}', re.DOTALL)
"""A whole string, what begins or parts values, and digits: a number takes the square of its length."""


def too_many(document: bytes, most: int = MAX_VALUES) -> bool:
    """Whether it holds more strings, brackets and commas than that. It need not be JSON; it is not read further."""
    if len(document) <= most:
        return False
    return next(islice(_COUNTED.finditer(document), most, None), None) is not None
