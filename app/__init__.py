"""sse-relay: chat requests in, server-sent events out, and every stream ends honestly."""

__version__ = "0.1.0"
