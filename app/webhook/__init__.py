"""Tells an application of each stream that has ended: one signed HTTP call, repeated until it is taken or given up."""
