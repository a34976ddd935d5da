"""Files of packed rows: what they hold and what a plan needs of them."""
