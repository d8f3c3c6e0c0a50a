"""Where a generation's events are kept, and read by cursor from the first byte on."""
