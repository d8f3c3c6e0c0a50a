"""What upstream sends → the events of the relay, or how it failed (contract §4). Pure: no I/O, no clock."""

from app.decode.answer import Complete, Limits
from app.decode.decoder import Decoder
from app.decode.failure import from_status

__all__ = ["Complete", "Decoder", "Limits", "from_status"]
