"""What an operator should be told at the start."""

import multiprocessing

import structlog

logger = structlog.get_logger("app.server")


def tell_of_siblings() -> None:
    """Several processes without a shared log: a stream can be found only in the one where it is generated.

    Workers of uvicorn can be noticed; replicas, on this machine or others, cannot be seen from here.
    """
    if multiprocessing.parent_process() is not None:
        logger.warning("one of several workers, without RELAY_REDIS_URL: streams can be resumed only where they live")
