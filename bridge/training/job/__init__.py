"""A job of many processes: how they agree, end, start again, and what became of the time."""
