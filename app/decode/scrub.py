"""Upstream's own words, made fit for a stranger's eyes: without keys, ids of accounts, URLs, hosts and addresses.

What is removed too much costs a word of a hint; what is removed too little gives away an operator's key or network. So
where a pattern cannot tell, the word goes. Kept on purpose: names of models and paths of parameters, without which "the
model … does not exist" helps nobody.
"""

import re

MAX_WORDS_CHARACTERS = 300
_READ_CHARACTERS = 4 * MAX_WORDS_CHARACTERS
_REMOVED = "[removed]"

# Zero-width and bidirectional controls as well: they hide what a pattern looks for, and reorder what a reader sees.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_SPACES = re.compile(r"[\s\u2028\u2029]+")

_TLD = (
    "com|org|net|io|ai|dev|app|cloud|edu|gov|mil|int|info|biz|tech|run|sh|xyz|site|online|page|systems|"
    "local|localdomain|localhost|internal|intranet|intra|lan|corp|home|private|svc|cluster|consul|arpa|onion|"
    "test|example|invalid|[a-z]{2}"
)
_PARAMETER = r"(?:messages|tools|functions|tool_choice|response_format|input|body|stream_options|metadata|logit_bias)\b"
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*+)"

_PATTERNS = (
    r"[a-z][a-z0-9+.-]*+://\S+",
    r"\bwww\.\S+",
    r"\S*@\S+",  # mail addresses, and user:password@host
    r"\b(?:bearer|token|api[ _-]?key)[ :=]+[\"']?(?=\S*[\d*._-])[\w.~+/=*-]{6,}",
    r"\bbearer\s+\S+",
    r"\b(?:sk|pk|rk)[-_]\S+",
    r"\b(?:gsk|xai|hf|pplx|nvapi|r8|fw|csk|tgp|glpat|ghp|gho|github_pat|xox[a-z])[-_][\w*.-]{6,}",
    r"\b(?:AIza|AKIA|ASIA|eyJ)[\w.*-]{8,}",
    r"\b(?:org|proj)[-_][\w*-]+",
    r"\S*\*{3,}\S*",  # a key masked by upstream still tells its ends
    r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b",
    # IPv6, with a zone, a dotted end and a port; before IPv4, which would take its end alone.
    r"(?<![\w:.])\[?(?:[0-9a-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]{0,4})(?:%\w+)?(?:\](?::\d+)?)?(?![\w:])",
    r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\w])(?:/\S*)?",
    rf"(?<![\w.-])(?:{_LABEL}\.)+(?:{_TLD})\.?(?::\d+)?(?![\w-])(?:/\S*)?",
    rf"(?<![\w.-])(?!{_PARAMETER})(?:{_LABEL}\.){{2,}}[a-z][a-z-]*+(?::\d+)?(?![\w-])(?:/\S*)?",
    r"\blocalhost\b(?::\d+)?(?:/\S*)?",
    r"(?<![\w.-])[a-z][\w.-]*+:\d{2,5}(?!\w)(?:/\S*)?",
)
_SECRETS = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z0-9+/=_.-]{16,}")


def scrubbed(words: str) -> str:
    """At most 300 characters of one line, without what could be a secret."""
    text = _CONTROLS.sub("", _SPACES.sub(" ", words[:_READ_CHARACTERS]))
    if len(words) > _READ_CHARACTERS:
        text = text.rpartition(" ")[0]  # half a key is no pattern any more
    text = _TOKEN.sub(_without_secret, _SECRETS.sub(_REMOVED, text)).strip()
    return text if len(text) <= MAX_WORDS_CHARACTERS else text[: MAX_WORDS_CHARACTERS - 1] + "…"


def _without_secret(token: re.Match[str]) -> str:
    """Long hex and base64 by the look of their parts: `Llama-3.3-70B-Instruct-Turbo` is as long as a key."""
    text = token.group()
    return _REMOVED if text.endswith("=") or any(map(_is_random, re.split(r"[+/=_.-]", text))) else text


def _is_random(part: str) -> bool:
    digits = sum(character.isdigit() for character in part)
    if len(part) >= 16:
        return digits > 0 or not (part.islower() or part.isupper())
    return len(part) >= 12 and digits >= 2 and not (part.islower() or part.isupper() or part.isdigit())
