"""What clients may ask, a module per dialect: pydantic at the door, a frozen `Chat` inside."""
