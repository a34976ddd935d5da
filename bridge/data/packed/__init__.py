"""Files of packed rows: their content, and the statistics that plans need."""
