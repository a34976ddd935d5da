"""A job of many processes: agreement between ranks, its end, restarts, and how its time was spent."""
