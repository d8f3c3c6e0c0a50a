"""`python -m app` is `sse-relay`."""

from app.cli import main

if __name__ == "__main__":
    main()
