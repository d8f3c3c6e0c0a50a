"""Refusals in OpenAI's shape, so that the SDKs raise their own classes."""

from typing import Final, NamedTuple


class Words(NamedTuple):
    """What OpenAI says with a status."""

    message: str
    type: str
    code: str | None = None


WORDS: Final = {
    400: Words("The demo model refuses every request.", "invalid_request_error", "invalid_value"),
    401: Words("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    429: Words("Rate limit reached for the demo model. Please try again in 1s.", "requests", "rate_limit_exceeded"),
    500: Words("The server had an error while processing your request. Sorry about that!", "server_error"),
    503: Words("The engine is currently overloaded, please try again later.", "server_error"),
}


class Refused(Exception):
    """A request that ends in an HTTP error. `param` names the field at fault."""

    def __init__(self, status: int, words: Words, *, param: str | None = None) -> None:
        super().__init__(words.message)
        self.status = status
        self.words = words
        self.param = param

    def as_json(self) -> dict[str, object]:
        words = self.words
        error = {"message": words.message, "type": words.type, "param": self.param, "code": words.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": "1"} if self.status == 429 else {}


def refused(status: int) -> Refused:
    return Refused(status, WORDS[status])


def malformed(message: str, *, param: str | None = None) -> Refused:
    return Refused(400, Words(message, "invalid_request_error"), param=param)


def unknown_model(name: str) -> Refused:
    words = Words(
        f"The model `{name}` does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    )
    return Refused(404, words, param="model")
