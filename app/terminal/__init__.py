"""The terminal's side: an answer typed as it arrives, chat turns, and the demonstration."""
